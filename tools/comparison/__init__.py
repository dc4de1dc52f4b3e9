"""What tools/compare_methods.py consists of: plans, trainings, speed, and the table of them."""
