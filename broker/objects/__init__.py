"""Object storage over S3: `ObjectStore` for one bucket, `Manifest` of what a component left there,
`EmbeddedObjectStore` where there is no S3 yet.

The names are imported when first used: the embedded server lives below this package, and its process must
be patched for eventlet before boto3 or pydantic come into it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.objects.config import S3Config
    from broker.objects.embedded import EmbeddedObjectStore, S3Endpoint
    from broker.objects.manifest import Manifest, RefusedFile, StoredFile
    from broker.objects.store import ObjectStore
    from broker.objects.upload import StoredObject

__all__ = [
    "EmbeddedObjectStore",
    "Manifest",
    "ObjectStore",
    "RefusedFile",
    "S3Config",
    "S3Endpoint",
    "StoredFile",
    "StoredObject",
]

_HOMES = {
    "EmbeddedObjectStore": "embedded",
    "Manifest": "manifest",
    "ObjectStore": "store",
    "RefusedFile": "manifest",
    "S3Config": "config",
    "S3Endpoint": "embedded",
    "StoredFile": "manifest",
    "StoredObject": "upload",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
