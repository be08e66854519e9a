# mmlska with everything that it needs, for the CPU:
#     docker build -t mmlska .
# and for a GPU, on the CUDA version that PyTorch was built with:
#     docker build -t mmlska:cuda --build-arg BASE=nvidia/cuda:12.9.1-devel-ubuntu24.04 \
#         --build-arg TORCH_SPEC=torch==2.9.0 --build-arg TORCH_ARGS='--index-url https://download.pytorch.org/whl/cu129' \
#         --build-arg CUDA_ARCHITECTURES='8.0;9.0' .
#     docker run --rm -it --gpus all --shm-size 8g -v "$PWD/data:/mmlska/data" -v "$PWD/work_dirs:/mmlska/work_dirs" mmlska:cuda
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# The compiler stays: Triton builds a small module with it when it first runs. The versions are those of the base image.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        build-essential ca-certificates git libglib2.0-0 python3 python3-dev python3-venv unzip \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 10001 --create-home --shell /bin/bash user && install --directory --owner user /mmlska
USER 10001
WORKDIR /mmlska
COPY --chown=user . .

# Beside the checkout: a folder of the host may be mounted over it.
ENV VENV=/home/user/venv
ARG TORCH_SPEC=torch==2.13.0+cpu
ARG TORCH_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
ARG MMCV_ARGS=""
# No GPU is seen during a build, so that the architectures are named; empty: operators for the CPU alone.
ARG CUDA_ARCHITECTURES=""
RUN if [ -n "$CUDA_ARCHITECTURES" ]; then \
        export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$CUDA_ARCHITECTURES"; \
    fi \
    && make install TORCH_SPEC="$TORCH_SPEC" TORCH_ARGS="$TORCH_ARGS" MMCV_ARGS="$MMCV_ARGS" \
    && rm -rf /home/user/.cache/pip

ENV PATH=/home/user/venv/bin:$PATH
CMD ["bash"]
