# On a CPU:
#   docker build --tag tutelage .
#   docker run --rm --volume tutelage-runs:/runs tutelage run quickstart
# On NVIDIA cards, where PyPI's build of PyTorch brings its own CUDA libraries (docker run needs --gpus all):
#   docker build --tag tutelage --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 \
#     --build-arg TORCH_INDEX=https://pypi.org/simple .
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/tutelage \
    && useradd --create-home tutelage \
    && install --directory --owner tutelage /runs /work

ENV PATH=/opt/tutelage/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# PyTorch alone first: the layer is large and changes seldom. What it depends on comes from PyPI below.
RUN pip install --no-deps --index-url "${TORCH_INDEX}" torch==2.13.0
COPY . /src
RUN pip install --constraint /src/constraints.txt /src

USER tutelage
WORKDIR /work
ENV TUTELAGE_RUNS=/runs
VOLUME /runs
ENTRYPOINT ["tutelage"]
CMD ["--help"]
