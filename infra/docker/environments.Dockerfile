# The field's own packages, an image each. From the repository's root:
#
#   docker build -f infra/docker/environments.Dockerfile --target laion-clap -t tinymusician-laion-clap .
#   docker run --rm -v "$PWD/work:/work" tinymusician-laion-clap SCRIPT.py
#
# The image's command is the environment's Python. A cluster's own image takes the environment from it, for `runtime_env`:
#
#   COPY --from=tinymusician-laion-clap /opt/laion-clap /opt/laion-clap
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS audiocraft-built
COPY infra/environments /src
RUN /src/install audiocraft /opt/audiocraft

FROM ${BASE} AS audiocraft
COPY --from=audiocraft-built /opt/audiocraft /opt/audiocraft
RUN useradd --uid 10001 --create-home player
USER player
WORKDIR /work
ENTRYPOINT ["/opt/audiocraft/bin/python"]

FROM ${BASE} AS laion-clap-built
COPY infra/environments /src
RUN /src/install laion-clap /opt/laion-clap

FROM ${BASE} AS laion-clap
COPY --from=laion-clap-built /opt/laion-clap /opt/laion-clap
COPY tinymusician /opt/code/tinymusician
ENV PYTHONPATH=/opt/code
RUN useradd --uid 10001 --create-home player
USER player
WORKDIR /work
ENTRYPOINT ["/opt/laion-clap/bin/python"]
