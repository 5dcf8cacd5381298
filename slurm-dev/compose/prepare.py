"""What `broker up` does before it starts its parts, for services on their own. Repeating it is harmless."""

from broker import schema
from broker.context import build_context
from broker.identity.service import ensure_first_admin
from broker.settings import Settings

settings = Settings()
context = build_context(settings)
schema.upgrade(context.db)
context.objects.ensure_bucket(settings.s3.cors_origins)
if first := ensure_first_admin(context.db, settings.data_dir):
    print(f"First start: log in as {first.username!r}; the one-time password lies in {first.path}.")
context.close()
