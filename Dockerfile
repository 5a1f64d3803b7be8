# The server of a classifier. It is made of wheels only; build those of this package first:
#
#   docker run --rm --volume .:/src python:3.12 pip wheel --no-deps --wheel-dir /src/dist /src /src/engine
#   docker build --tag skipnets .                                      # for CPUs
#   docker build --tag skipnets:cuda --build-arg DEVICE=cuda .         # PyTorch with CUDA, and Grad-CAM
#   docker run --read-only --tmpfs /tmp --publish 127.0.0.1:8000:8000 \
#     --env SKIPNETS_TOKEN --volume ./models:/models:ro skipnets /models/cats.onnx
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG DEVICE=cpu
COPY constraints.txt dist/*.whl /wheels/
RUN python -m venv /opt/skipnets && \
    case "$DEVICE" in cpu) extras=serve ;; cuda) extras=serve,explain ;; *) echo "DEVICE=$DEVICE: cpu or cuda" >&2; exit 1 ;; esac && \
    /opt/skipnets/bin/pip install --no-cache-dir --only-binary :all: --constraint /wheels/constraints.txt \
      "$(echo /wheels/skipnets-[0-9]*.whl)[$extras]" /wheels/skipnets_engine-*.whl

FROM python:${PYTHON}-slim
COPY --from=build /opt/skipnets /opt/skipnets
# HOME: what a runtime measures once is kept there, in memory.
ENV PATH=/opt/skipnets/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
# Asks for a token in SKIPNETS_TOKEN, as the address is reachable from outside the container.
ENTRYPOINT ["skipnets", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/model"]
