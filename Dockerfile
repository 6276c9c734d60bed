# snzoo's server in a container, on the CPU:
#
#     docker build --tag snzoo .
#     docker run --rm --publish 127.0.0.1:8000:8000 snzoo
#
# On NVIDIA GPUs, from an image that has PyTorch and CUDA:
#
#     docker build --tag snzoo --build-arg BASE=pytorch/pytorch:2.7.1-cuda12.8-cudnn9-runtime .
#     docker run --rm --gpus all --publish 127.0.0.1:8000:8000 snzoo --model resnet50v1_sn_8x32
#
# Arguments after the image's name are those of `snzoo serve`.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
COPY . /src
RUN python3 -m venv /tmp/build \
    && /tmp/build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /dist /src

FROM ${BASE}
# pip reads these two, for instance to install a CPU build of PyTorch, which is smaller:
#     --build-arg PIP_EXTRA_INDEX_URL=…
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# The PyTorch of the base image, if it has one, is used.
RUN python3 -m venv --system-site-packages /opt/snzoo
ENV PATH=/opt/snzoo/bin:$PATH
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir "$(echo /dist/snzoo-*.whl)[serve,fast]"
# Weights are kept in the home folder.
RUN useradd --system --create-home --home-dir /var/lib/snzoo snzoo
ENV SNZOO_HOME=/var/lib/snzoo/cache
USER snzoo
WORKDIR /var/lib/snzoo
VOLUME /var/lib/snzoo
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["snzoo", "serve", "--host", "0.0.0.0", "--port", "8000"]
