"""The embedded S3 server: OpenStack Swift with its s3api, in one process, for one machine.

Run as `python -m broker.objects.server --root DIR`. `layout` owns the directory, `config` writes Swift's
configuration, `filters` hold the two parts that a Swift cluster would have elsewhere (authentication by
access key, a cache), `process` runs the four servers in one eventlet hub.

What it is not: it has no replicas, never reclaims the empty tombstones of deleted objects, nor the parts of
a multipart object that is overwritten (the broker does not: every attempt has keys of its own). A
site with an S3 of its own points the broker at that instead; nothing else changes.
"""
