# alignflow with its engines. The tag is the commit, so that a tag says which code runs:
#   docker build --tag registry.example.com/alignflow:$(git rev-parse HEAD) .
#   docker build --build-arg REQUIREMENTS=gpu.txt --build-arg TORCH_BACKEND=auto ...   NVIDIA GPUs
FROM python:3.11-slim-bookworm

ARG REQUIREMENTS=cpu.txt
ARG TORCH_BACKEND=cpu

# The compiler is for DeepSpeed's and torch's own kernels, tini hands signals on and reaps.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ git make tini \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/alignflow
COPY requirements requirements
RUN pip install --no-cache-dir uv==0.13.9 \
 && uv pip install --system --no-cache --no-deps --compile-bytecode \
    --torch-backend ${TORCH_BACKEND} -r requirements/${REQUIREMENTS}

COPY . .
RUN uv pip install --system --no-cache --no-deps --editable . \
 && python -m flows.prefect_server prepare

# Ranking page and dashboards are reached through a proxy (docs/operations.md); nothing is exposed
# by the image. A run's files are below /data.
RUN useradd --create-home alignflow && mkdir /data && chown alignflow /data
USER alignflow
WORKDIR /data
VOLUME /data

ENTRYPOINT ["tini", "--", "alignflow"]
CMD ["up", "--foreground"]
