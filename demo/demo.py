#!/usr/bin/env python
"""Draw a trained model's instances: ``isda predict``, by the name that Detectron2 users know.

demo.py --model NAME --input a.jpg 'photos/*.jpg' --output masks
demo.py --config-file CONFIG --input a.jpg --output masks --opts MODEL.WEIGHTS W.pth
demo.py --config-file CONFIG --video-input in.mp4 --output out.mp4 --opts MODEL.WEIGHTS W.pth
"""

from isda.cli import program

if __name__ == "__main__":
    program("predict")
