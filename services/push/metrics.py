"""What the push service tells Prometheus."""

from prometheus_client import Counter

PUSHES = Counter("tessera_pushes_total", "Requests to push gateways by what came of them", ["outcome"])
for _outcome in ("sent", "failed", "rejected"):  # from the beginning, so that the first one shows as an increase
    PUSHES.labels(_outcome)
SKIPPED = Counter("tessera_pushes_skipped_total", "Notifications that were read or redacted before they were sent")
