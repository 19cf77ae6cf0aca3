"""Where models and data can come from, by the scheme of their address."""

from __future__ import annotations

from resprout.tasks.acquire.pinned import Source
from resprout.tasks.core.methods import Registry

SOURCES: Registry[type[Source]] = Registry("source scheme")
SOURCES.add("local", "resprout.tasks.acquire.sources.local:Local", "folder or file on this machine")
SOURCES.add("package", "resprout.tasks.acquire.sources.package:Package", "file that a Python package ships")
SOURCES.add("hf", "resprout.tasks.acquire.sources.hub:Hub", "model repository of the Hugging Face Hub")
SOURCES.add("hf-dataset", "resprout.tasks.acquire.sources.hub_dataset:HubDataset", "dataset of the Hub")
SOURCES.add("s3", "resprout.tasks.acquire.sources.bucket:Bucket", "objects of an S3 bucket")
SOURCES.add("models", "resprout.tasks.acquire.sources.mlflow_model:MlflowModel", "version of an MLflow model")
