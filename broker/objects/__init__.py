"""Object storage over S3: `ObjectStore` for one bucket, `Manifest` of what a component left there,
`EmbeddedObjectStore` where there is no S3 yet.
"""

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
