# Image for training with or without a GPU: make image, or docker build --tag neuscale .
# Each step is a script in scripts/image, which apptainer.def runs as well.

ARG DEVEL_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04@sha256:5dc1bca23d05bd37b011be68ec470c03b403a5da07ec3a86e41af9470e9d0cc6
ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:2ab6381d970b211fb93853796dc6707eb8a72575a375c422b17cf4d8b2641701

# Tools that install and build; they are not part of the final image.
FROM ${BASE_IMAGE} AS tools
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=bind,source=scripts/image/system.sh,target=/src/system.sh \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    bash /src/system.sh tools
RUN --mount=type=bind,source=scripts/image/index.sh,target=/src/index.sh \
    --mount=type=bind,source=scripts/image/tools.sh,target=/src/tools.sh \
    --mount=type=bind,source=requirements-build.lock,target=/src/requirements-build.lock \
    --mount=type=secret,id=index \
    --mount=type=secret,id=ca \
    bash /src/tools.sh /src/requirements-build.lock

# Locked packages, installed before any source is used, so that a code change does not invalidate this stage.
FROM ${BASE_IMAGE} AS packages
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=bind,source=scripts/image/system.sh,target=/src/system.sh \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    bash /src/system.sh run
RUN --mount=type=bind,from=tools,source=/opt/build,target=/opt/build \
    --mount=type=bind,source=scripts/image/index.sh,target=/src/index.sh \
    --mount=type=bind,source=scripts/image/packages.sh,target=/src/packages.sh \
    --mount=type=bind,source=requirements-build.lock,target=/src/requirements-build.lock \
    --mount=type=bind,source=requirements.lock,target=/src/requirements.lock \
    --mount=type=cache,target=/root/.cache/uv \
    --mount=type=secret,id=index \
    --mount=type=secret,id=ca \
    bash /src/packages.sh /src/requirements.lock /src/requirements-build.lock

# Wheel of the native ops, compiled with nvcc against the packages of the image.
FROM ${DEVEL_IMAGE} AS ops
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=bind,source=scripts/image/system.sh,target=/src/system.sh \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    bash /src/system.sh build
RUN --mount=type=bind,from=tools,source=/opt/build,target=/opt/build \
    --mount=type=bind,from=packages,source=/opt/neuscale,target=/opt/neuscale \
    --mount=type=bind,source=scripts/image/ops.sh,target=/src/ops.sh \
    --mount=type=bind,source=cuda_ops,target=/src/cuda_ops \
    bash /src/ops.sh /src/cuda_ops /wheels

# Wheel of the program.
FROM tools AS app
RUN --mount=type=bind,source=scripts/image/app.sh,target=/src/app.sh \
    --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=README.md,target=/src/README.md \
    --mount=type=bind,source=LICENSE,target=/src/LICENSE \
    --mount=type=bind,source=app,target=/src/app \
    bash /src/app.sh /src /wheels

# Final image. Steps that change most often come last.
FROM packages AS final
RUN --mount=type=bind,from=tools,source=/opt/build,target=/opt/build \
    --mount=type=bind,from=ops,source=/wheels,target=/wheels \
    --mount=type=bind,source=scripts/image/install.sh,target=/src/install.sh \
    bash /src/install.sh /wheels/*.whl
RUN --mount=type=bind,from=tools,source=/opt/build,target=/opt/build \
    --mount=type=bind,from=app,source=/wheels,target=/wheels \
    --mount=type=bind,source=scripts/image/install.sh,target=/src/install.sh \
    bash /src/install.sh /wheels/*.whl

# SOURCE_DATE_EPOCH is the date in the data set's record. It is set after the steps that compile Python
# files, because it would change how they are compiled.
ARG SOURCE_DATE_EPOCH
RUN --mount=type=bind,source=scripts/image/data.sh,target=/src/data.sh \
    bash /src/data.sh

# make passes all of these; finish.sh compares VERSION and LOCK_SHA256 with the image's contents.
ARG VERSION=unknown
ARG REVISION
ARG LOCK_SHA256
RUN --mount=type=bind,source=scripts/image,target=/src/image \
    --mount=type=bind,source=requirements.lock,target=/src/requirements.lock \
    bash /src/image/finish.sh /src/requirements.lock
LABEL org.opencontainers.image.title="NeuScale" \
      org.opencontainers.image.description="Reproducible, distributed training of vision transformers" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      neuscale.lock.sha256="${LOCK_SHA256}"

# For commands that are started without the entry point; environment.sh sets the rest.
ENV PATH=/usr/local/bin:/opt/neuscale/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONNOUSERSITE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /runs
VOLUME ["/runs"]
USER 1000:1000
STOPSIGNAL SIGTERM
# Check everything that would prevent training: folders, disk, driver, shared memory.
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s --retries=2 CMD ["neuscale", "doctor"]
ENTRYPOINT ["neuscale"]
CMD ["--help"]

# Tests, run in the image during its build: docker build --target test .
FROM final AS test
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
USER 0:0
RUN --mount=type=bind,from=tools,source=/opt/build,target=/opt/build \
    --mount=type=bind,source=scripts/image/index.sh,target=/src/index.sh \
    --mount=type=bind,source=scripts/image/test.sh,target=/src/test.sh \
    --mount=type=bind,source=requirements-build.lock,target=/src/requirements-build.lock \
    --mount=type=bind,source=requirements-dev.lock,target=/src/requirements-dev.lock \
    --mount=type=cache,target=/root/.cache/uv \
    --mount=type=secret,id=index \
    --mount=type=secret,id=ca \
    bash /src/test.sh install /src/requirements-dev.lock /src/requirements-build.lock
# A user without a name, and no network.
USER 12345:12345
ARG PYTEST_ADDOPTS=-q
RUN --network=none --mount=type=bind,target=/src \
    bash /src/scripts/image/test.sh run /src

# Default target of `docker build .`.
FROM final
