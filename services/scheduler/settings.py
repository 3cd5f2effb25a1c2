"""Settings of a scheduler process."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from services.scheduler.api.callers_file import BadCallersFile, CallersFile, read_callers
from services.scheduler.api.gate import Gate
from services.scheduler.api.validation import AdmissionLimits
from services.scheduler.engine.engine import EngineBounds
from services.scheduler.leading.leader import LeaderOptions
from services.scheduler.leading.worker_stream import Patience
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.controller import ConstantThreshold, ThresholdController
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds, PolicySpec
from services.scheduler.profiles.keeper import KeeperOptions
from services.scheduler.profiles.store import ProfileStore
from services.scheduler.store.images import check_images_url
from services.scheduler.store.store_base import JobStoreSettings
from synerdiff.profiles import UNPROFILED_TASKS
from synerdiff.profiles import load as load_profile
from synerdiff.settings import OptionalFile, ServiceSettings, is_loopback
from synerdiff.tls import BadTlsFiles, ServerTls, check_pem_files

Switch = Literal["auto", "on", "off"]
_MOST_PLAN_AHEAD = 8


class SchedulerSettings(ServiceSettings):
    """Settings of `python -m services.scheduler`."""

    instance_id: str = Field("", description="this scheduler's name in Redis and in traces; empty: its host's")
    policy: str = Field(
        "synerdiff", pattern=f"^({'|'.join(POLICIES)})$", description=f"scheduling policy: {', '.join(POLICIES)}"
    )
    order: Literal["auto", "fifo", "sharing", "urgency"] = Field(
        "auto", description="order of tasks: fifo, sharing (all advance equally), urgency; auto: the policy's own"
    )
    knee: Switch = Field("auto", description="run no more rows at once than the profile's knee: on, off, auto")
    planning: Literal["auto", "none", "decodes_first", "programme"] = Field(
        "auto", description="how rounds are planned: none, decodes_first, programme; auto: the policy's own"
    )
    chunking: Switch = Field("auto", description="let decodes span items by their bands: on, off, auto")
    skip_cfg: Switch = Field("auto", description="let tasks skip guidance within their model's budget: on, off, auto")
    controller: Switch = Field("auto", description="let the threshold follow the load: on, off, auto")
    threshold: float = Field(
        0.0, ge=0, le=1, description="least share of the fastest round's throughput; above 0 it is kept constant"
    )
    in_step: Switch = Field("auto", description="let the items of a tick wait for each other: on, off, auto")
    unet_batch: int = Field(
        UNPROFILED_TASKS, ge=1, le=256, description="most tasks stepped together where no knee is known"
    )
    vae_batch: int = Field(4, ge=1, le=64, description="most images decoded together on one VAE worker")
    prepare_ahead: int = Field(4, ge=0, le=256, description="tasks past unet_batch prepared before a place falls free")
    plan_ahead: int = Field(
        0,
        ge=0,
        le=_MOST_PLAN_AHEAD,
        description="plans under way per worker; 1 makes workers wait for each; 0: the policy's own",
    )
    profile: Path | None = Field(None, description="profile file of the workers' device; none: one kept in Redis")
    profile_when_idle: bool = Field(True, description="measure a profile while idle where there is none")
    read_ahead: int = Field(2, ge=1, le=64, description="jobs read from the queue per arena slot")
    max_deaths: int = Field(10, ge=0, le=1000, description="losses of its worker that one image survives")
    plan_timeout_s: float = Field(
        600.0,
        ge=2,
        le=86_400,
        description="seconds for a prompt, or an item that no profile predicts, before its worker is given up",
    )
    max_waiting: int = Field(10_000, ge=1, description="jobs that may wait for one model before new ones are refused")
    max_num_images: int = Field(16, ge=1, le=1024, description="most images of one request")
    weights_wait_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="seconds that a job waits for the weights it was accepted for, if others serve",
    )
    exact: bool = Field(False, description="default of a request's `exact`: the same picture to the bit; slower")
    default_model: str = Field("", description="the model of requests that name none; empty: the only one there is")
    default_timeout_s: float = Field(600.0, gt=0, le=86_400, description="timeout of requests that name none")
    max_timeout_s: float = Field(3600.0, gt=0, le=86_400, description="longest timeout a request may ask for")
    retention_s: float = Field(600.0, ge=1, description="seconds that events and images are kept after a job's end")
    images_url: Annotated[str, AfterValidator(check_images_url)] = Field(
        "redis",
        description="where images are kept: redis, file:///DIRECTORY or s3://BUCKET/PREFIX; of this deployment alone",
    )
    memory_share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="share of Redis' maxmemory that accepted jobs may fill with their results; more jobs are refused",
    )
    abandonment_s: float = Field(10.0, ge=1, description="seconds after which a job of Generate without followers ends")
    leader_ttl_s: float = Field(3.0, ge=0.5, le=60, description="seconds after which a silent leader is replaced")
    connection_age_s: float = Field(300.0, ge=10, description="age at which clients are asked to connect anew")
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://[^/\s]+)?$",
        description="OTLP/gRPC collector of traces, as http://host:4317; empty: none",
    )
    trace_ratio: float = Field(1.0, ge=0, le=1, description="share of requests traced where the client did not decide")
    tls_client_ca: OptionalFile = Field(
        None, description="PEM file of the CA of clients' certificates; none: clients need no certificate"
    )

    callers_file: OptionalFile = Field(
        None, description="file of the callers: hashes of their keys, or the names in their certificates; none: no keys"
    )
    anonymous: bool = Field(False, description="serve callers who do not say who they are on more than this machine")
    max_concurrent_rpcs: int = Field(
        4096, ge=16, le=1_000_000, description="calls answered at once before further ones get RESOURCE_EXHAUSTED"
    )

    @model_validator(mode="after")
    def _check_client_ca(self) -> Self:
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("--tls-client-ca: is of no use without --tls-certificate and --tls-key")
        try:
            check_pem_files(None, None, self.tls_client_ca)
        except BadTlsFiles as error:
            raise ValueError(f"TLS: {error}") from error
        return self

    @model_validator(mode="after")
    def _check_callers(self) -> Self:
        if self.callers_file:
            try:
                read_callers(self.callers_file)
            except BadCallersFile as error:
                raise ValueError(f"--callers-file: {error}") from error
        if not (self.callers_file or self.tls_client_ca or self.anonymous or is_loopback(self.listen)):
            raise ValueError(
                f"--listen: {self.listen} is reached from other machines, and anybody there could use up this one; "
                "name the callers with --callers-file, ask for certificates with --tls-client-ca, or set --anonymous"
            )
        return self

    def gate(self) -> Gate:
        """The check of each call's caller."""
        known = CallersFile(self.callers_file) if self.callers_file else None
        return Gate(known, certificates=self.tls_client_ca is not None)

    def server_tls(self) -> ServerTls | None:
        """TLS of the public port; None: plaintext. Clients are many, and strangers: their certificates, where required,
        come from another CA than `tls_ca`, whose certificates can command workers."""
        tls = super().server_tls()
        return tls and replace(tls, client_ca=self.tls_client_ca)

    def admission_limits(self) -> AdmissionLimits:
        """The bounds of requests."""
        return AdmissionLimits(
            max_num_images=self.max_num_images,
            default_timeout_s=self.default_timeout_s,
            max_timeout_s=self.max_timeout_s,
            default_model=self.default_model,
            exact=self.exact,
        )

    def store_settings(self) -> JobStoreSettings:
        """How jobs are kept."""
        return JobStoreSettings(
            max_waiting=self.max_waiting,
            retention_s=self.retention_s,
            memory_share=self.memory_share,
            follower_lease_s=self.abandonment_s,
        )

    def engine_bounds(self) -> EngineBounds:
        """The bounds of the engine."""
        return EngineBounds(
            plan_ahead=self.plan_ahead or _MOST_PLAN_AHEAD,
            max_deaths=self.max_deaths,
            read_ahead=self.read_ahead,
            weights_wait_s=self.weights_wait_s,
        )

    def policy_spec(self) -> PolicySpec:
        """The chosen policy with the mechanisms that are switched one by one."""
        changes: dict[str, Any] = {}
        for name in ("order", "planning"):
            if getattr(self, name) != "auto":
                changes[name] = getattr(self, name)
        for name in ("knee", "chunking", "skip_cfg", "controller", "in_step"):
            if getattr(self, name) != "auto":
                changes[name] = getattr(self, name) == "on"
        if self.plan_ahead:
            changes["plan_ahead"] = self.plan_ahead
        if self.threshold:
            changes |= {"threshold": self.threshold, "controller": False}
        return replace(POLICIES[self.policy], **changes)

    def leader_options(self, store: ProfileStore) -> LeaderOptions:
        """Options of the pool's leader. Raises InvalidRequest for a bad profile file."""
        spec, plans = self.policy_spec(), PlanBook()
        bounds = PolicyBounds(unet_batch=self.unet_batch, vae_batch=self.vae_batch, prepare_ahead=self.prepare_ahead)
        given = load_profile(self.profile) if self.profile else None
        return LeaderOptions(
            policy=ConfiguredPolicy(spec, bounds, plans),
            bounds=self.engine_bounds(),
            thresholds=lambda: ThresholdController() if spec.controller else ConstantThreshold(spec.threshold),
            profiles=KeeperOptions(given, store, self.profile_when_idle),
            plans=plans,
            worker_tls=self.worker_tls(),
            patience=Patience(self.plan_timeout_s),
        )
