# ISDA in a container. For CPUs, and for GPUs through PyTorch:
#
#     docker build -t isda .
#
# For NVIDIA's GPUs with the compiled CUDA kernels (the base brings nvcc; its first number must be
# that of the PyTorch in requirements.txt):
#
#     docker build -t isda:cuda --build-arg KERNELS=cuda \
#         --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 .
ARG BASE=debian:12-slim
FROM ${BASE}
ARG KERNELS=cpu
# Empty: every kind of GPU that setup.py lists. "9.0" compiles for that one only, in less time.
ARG TORCH_CUDA_ARCH_LIST=

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /isda
COPY . .
# The same pins and hashes as everywhere else.
RUN ISDA_BUILD=${KERNELS} TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST} PIP_NO_CACHE_DIR=1 \
    python3 tools/make_env.py
ENV PATH=/isda/.venv/bin:${PATH}

CMD ["python", "-m", "isda", "doctor"]
