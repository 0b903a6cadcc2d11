# The exported model behind HTTP, in the small installation without torch: see docs/using.md.
FROM python:3.12-slim
WORKDIR /build
COPY pyproject.toml README.md ./
COPY src/reprise src/reprise
RUN pip install --no-cache-dir ".[onnx,serve]" && rm -r /build/*
WORKDIR /app
COPY models/export/model.onnx ./
USER 65534
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["reprise", "serve", "--model", "model.onnx", "--host", "0.0.0.0"]
