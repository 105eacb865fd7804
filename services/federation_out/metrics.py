"""What sending to other servers measures. No label names a server."""

from prometheus_client import Counter, Gauge, Histogram

TRANSACTIONS = Counter("tessera_federation_out_transactions", "Transactions by how they ended", ["outcome"])
for _outcome in ("taken", "failed", "dropped", "lost"):
    TRANSACTIONS.labels(_outcome)
PDUS = Counter("tessera_federation_out_pdus", "PDUs that other servers have taken")
EDUS = Counter("tessera_federation_out_edus", "EDUs that other servers have taken")
SEND_SECONDS = Histogram(
    "tessera_federation_out_send_seconds",
    "From a transaction's first byte to its answer",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60),
)
UNDER_WAY = Gauge("tessera_federation_out_under_way", "Transactions under way from this process")
DESTINATIONS = Gauge("tessera_federation_out_destinations", "Servers that this process sends to", ["state"])
OLDEST_SECONDS = Gauge(
    "tessera_federation_out_oldest_seconds", "How long the longest waiting server that answers has been waiting"
)
QUEUED_EPHEMERAL = Gauge("tessera_federation_out_ephemeral_servers", "Servers for which typing or presence waits")
