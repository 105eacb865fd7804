"""What telling application services measures. No label names a service: a registration's ID is of any length."""

from prometheus_client import Counter, Gauge, Histogram

TRANSACTIONS = Counter("tessera_appservice_transactions", "Transactions by how they ended", ["outcome"])
for _outcome in ("taken", "failed"):  # from the beginning, so that the first one shows as an increase
    TRANSACTIONS.labels(_outcome)
EVENTS = Counter("tessera_appservice_events", "Events that application services have taken")
EPHEMERAL = Counter(
    "tessera_appservice_ephemeral", "Receipts, typing and presence that application services have taken"
)
SEND_SECONDS = Histogram(
    "tessera_appservice_send_seconds",
    "From a transaction's first byte to its answer",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60),
)
QUEUED = Gauge("tessera_appservice_queued_events", "Events that wait for application services of this process")
OLDEST_SECONDS = Gauge("tessera_appservice_oldest_seconds", "How long the longest waiting event has waited")
FAILING = Gauge("tessera_appservice_failing", "Application services that did not take what they were sent last")
