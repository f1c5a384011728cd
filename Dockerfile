# The image of a deployment: SuperLink, SuperNodes and fedpara. See docs/deployment.md.
#   docker build -t fedpara:cpu .
#   docker build --build-arg BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime -t fedpara:cuda .
# Pin BASE by digest where builds have to be repeatable.
ARG BASE=python:3.12-slim
FROM ${BASE}

# Which torch pip takes where BASE brings none; TORCH_INDEX names another index, such as the one of CPU builds.
ARG TORCH="torch>=2.9,<2.14"
ARG TORCH_INDEX=""

WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY fedpara fedpara
COPY server server
COPY client client
COPY simulations simulations
RUN python -c "import torch" 2>/dev/null \
    || pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${TORCH}"
RUN pip install --no-cache-dir . && rm -rf /src
WORKDIR /

# Nothing here needs root: Compose files say which user owns the mounted folder.
RUN useradd --create-home --uid 1000 fedpara
USER fedpara
ENV FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
ENTRYPOINT ["fedpara"]
CMD ["--help"]
