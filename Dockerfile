# Two images: `coordinator`, without any machine-learning framework, and `peer`, with one (EXTRA=tensorflow or gpu).
# For BuildKit and for the classic builder alike. docs/containers.md says how to build and run them.
ARG BASE=python:3.11-slim-bookworm

# ---- how both images run
FROM ${BASE} AS runtime
RUN useradd --uid 1000 --user-group --no-create-home --home-dir /tmp entangled
# HOME, because a user given by --user is none of the image's and would have none.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /mine
# What Ctrl-C sends, at which both roles take their leave. Process 1 does not hear a SIGTERM that it does not handle.
STOPSIGNAL SIGINT
ENTRYPOINT ["entangled"]

# ---- the dependencies of both
FROM ${BASE} AS build
# Where packages come from is the builder's affair. pip takes an empty setting for none; no image below has any.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt ./
COPY scripts/requirements.py scripts/
# A quarter of numpy and pyarrow are tests, C headers and the RPC framework Flight, none of which this project imports.
RUN python scripts/requirements.py >requirements.txt \
 && pip --python /opt/venv/bin/python install --no-compile -r requirements.txt \
 && cd /opt/venv/lib/python3*/site-packages \
 && find numpy pyarrow -depth -type d '(' -name tests -o -name include ')' -exec rm -r {} + \
 && rm pyarrow/*flight* \
 && /opt/venv/bin/python -m compileall -q .

FROM build AS wheel
COPY . .
RUN pip wheel --no-deps --wheel-dir /dist .

# ---- the coordinator
FROM build AS build-coordinator
COPY --from=wheel /dist /dist
RUN pip --python /opt/venv/bin/python install --no-deps /dist/*.whl

FROM runtime AS coordinator
COPY --from=build-coordinator /opt/venv /opt/venv
USER 1000:1000
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-m", "entangled.launch.health"]
CMD ["coordinator", "mnist", "--listen", "0.0.0.0:50051", "--insecure", "--run-dir", "/runs/mnist"]

# ---- a peer
FROM build AS build-peer
ARG EXTRA=tensorflow
RUN python scripts/requirements.py ${EXTRA} >requirements.txt \
 && pip --python /opt/venv/bin/python install -r requirements.txt \
 && rm -rf /opt/venv/lib/python3*/site-packages/tensorflow/include
COPY --from=wheel /dist /dist
RUN pip --python /opt/venv/bin/python install --no-deps /dist/*.whl

# Who it is and where its coordinator: ENTANGLED_PEER and ENTANGLED_COORDINATOR, which the health check reads, too.
FROM runtime AS peer
COPY --from=build-peer /opt/venv /opt/venv
USER 1000:1000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-m", "entangled.launch.health"]
CMD ["peer", "--run-dir", "/runs/mnist"]
