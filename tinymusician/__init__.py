"""TinyMusician distils large text-to-music models into small ones that run on phones and in browsers.

The library does not depend on a cluster or a command line. Importing this package loads nothing, and has one effect: it
turns off the telemetry of ONNX Runtime, Hugging Face's hub client, Ray and MLflow, unless the user has set these
variables. ONNX Runtime reads its variable when it is imported: an application that imports it first must set it itself.
"""

import os

TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment variables that turn telemetry off."""
for _name, _value in TELEMETRY.items():
    os.environ.setdefault(_name, _value)
