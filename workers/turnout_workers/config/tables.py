"""What `turnout.toml` may hold: every table and field, its type, range, unit and default.

`turnout.example.toml` shows the same with words for the operator; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from turnout.ledger.keys import checked_namespace
from turnout.redis_address import checked
from turnout.request import Lane, RoutingStrategy
from turnout.value import Name, Value
from turnout_workers.config.providers import ProviderName, ProviderTable, Seconds, Url, Usd, with_presets
from turnout_workers.routing.health import EJECTION_S
from turnout_workers.routing.sharing import RESERVED


class RouterTable(Value):
    default_strategy: RoutingStrategy = RoutingStrategy.BALANCED
    health_check_interval: Seconds = 30.0
    failover_cooldown: Seconds = EJECTION_S
    """The first ejection of a failing endpoint; doubled by each further one in a row, up to 10 s."""
    hedge: bool = False
    """Whether an interactive call slower than 95 % of its endpoint's may be doubled, for at most 3 % of all calls."""


class WorkerTable(Value):
    concurrency: Annotated[int, Field(gt=0, le=10_000)] = 100
    """Jobs in flight in one worker process."""
    drain_s: Seconds = 30.0
    """How long a stopping worker lets its calls finish."""
    lease_s: Annotated[float, Field(ge=1, le=600)] = 30.0
    """How long a job stays claimed without a heartbeat, and so how soon a worker's death is noticed."""


class LaneTable(Value):
    reserved_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of each rate limit, and of each worker's slots: what this lane leaves to the more urgent ones."""


class LanesTable(Value):
    """The defaults keep interactive jobs fast under three times the load that the limits allow (simulated)."""

    interactive: LaneTable = LaneTable()
    standard: LaneTable = LaneTable(reserved_share=RESERVED[Lane.STANDARD])
    batch: LaneTable = LaneTable(reserved_share=RESERVED[Lane.BATCH])


class CeilingTable(Value):
    per_day_usd: Usd | None = None
    per_month_usd: Usd | None = None


class CeilingsTable(Value):
    """Most that may be spent; days and months are UTC's."""

    total: CeilingTable = CeilingTable()
    tenants: dict[Name, CeilingTable] = Field(default_factory=dict)
    """By tenant; the name `*` stands for every tenant not named."""
    providers: dict[Name, CeilingTable] = Field(default_factory=dict)


class RetentionTable(Value):
    results_s: Seconds = 86_400.0
    """How long a settled job and its result are kept."""
    failed_s: Seconds = 7 * 86_400.0
    """The same for failed jobs, which can be replayed."""


class MonitoringTable(Value):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    task_events: bool = True
    """Celery's events, which Flower shows; they cost a part of the throughput."""
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """Where each worker process serves its metrics; None: nowhere. 0: any free port, told in the log."""
    metrics_host: str = "127.0.0.1"


class WebhookTable(Value):
    """Called when a job that names this webhook has ended."""

    url: Url
    secret_env: str
    """Variable with the signing secret, or with `_FILE` after its name the file that holds it: `whsec_` and base64, as
    the Standard Webhooks libraries make it."""
    private: bool = False
    """Whether the address may be in your own network, and plain http."""


class File(Value):
    """The whole of turnout.toml."""

    redis_url: Annotated[str, AfterValidator(checked)] = "redis://127.0.0.1:6379/0"
    namespace: Annotated[str, AfterValidator(checked_namespace)] = "turnout"
    router: RouterTable = RouterTable()
    worker: WorkerTable = WorkerTable()
    lanes: LanesTable = LanesTable()
    ceilings: CeilingsTable = CeilingsTable()
    retention: RetentionTable = RetentionTable()
    monitoring: MonitoringTable = MonitoringTable()
    webhooks: dict[Name, WebhookTable] = Field(default_factory=dict)
    providers: Annotated[dict[ProviderName, ProviderTable], BeforeValidator(with_presets)] = Field(default_factory=dict)
