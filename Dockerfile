# `diml serve` in a container: docs/serve.md, "Deployment". One stage builds the wheel, the other installs it.
FROM python:3.11.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY csrc ./csrc
COPY src ./src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11.11-slim-bookworm
# PyTorch without CUDA, which would add gigabytes; for a GPU leave out the address.
RUN python -m pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision
COPY --from=build /wheels /wheels
RUN python -m pip install --no-cache-dir "$(ls /wheels/diml-*.whl)[web,search,milvus,heif]" && rm -rf /wheels
RUN useradd --system --uid 10001 --create-home diml \
    && install --directory --owner=diml /data /images /var/cache/diml
USER diml
WORKDIR /data
ENV DIML_CACHE=/var/cache/diml PYTHONUNBUFFERED=1
VOLUME ["/data", "/images", "/var/cache/diml"]
EXPOSE 8765
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/healthz', timeout=4)"]
ENTRYPOINT ["diml"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8765", "--index", "/data/photos.index", "--token-file", "/run/secrets/diml_token"]
