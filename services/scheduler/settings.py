"""What a scheduler can be told."""

from pydantic import Field

from services.scheduler.admission import AdmissionLimits
from services.scheduler.engine import EngineBounds
from services.scheduler.policies import POLICIES, PolicyBounds
from services.scheduler.queue import JobStoreSettings
from services.scheduler.snapshots import Policy
from synerdiff.settings import ServiceSettings


class SchedulerSettings(ServiceSettings):
    """Settings of `python -m services.scheduler`."""

    instance_id: str = Field("", description="this scheduler's name in leader elections; empty: drawn at start")
    policy: str = Field(
        "continuous", pattern=f"^({'|'.join(POLICIES)})$", description=f"who runs and when: {', '.join(POLICIES)}"
    )
    unet_batch: int = Field(8, ge=1, le=256, description="most tasks stepped together on one UNet worker")
    vae_batch: int = Field(4, ge=1, le=64, description="most images decoded together on one VAE worker")
    prepare_ahead: int = Field(4, ge=0, le=256, description="tasks past unet_batch prepared before a place falls free")
    plan_ahead: int = Field(2, ge=1, le=8, description="plans under way per worker; 1 makes workers wait for each")
    read_ahead: int = Field(2, ge=1, le=64, description="jobs read from the queue per arena slot")
    max_deaths: int = Field(10, ge=0, le=1000, description="losses of its worker that one image survives")
    max_waiting: int = Field(10_000, ge=1, description="jobs that may wait for one model before new ones are refused")
    max_num_images: int = Field(16, ge=1, le=1024, description="most images of one request")
    default_model: str = Field("", description="the model of requests that name none; empty: the only one there is")
    default_timeout_s: float = Field(600.0, gt=0, le=86_400, description="timeout of requests that name none")
    max_timeout_s: float = Field(3600.0, gt=0, le=86_400, description="longest timeout a request may ask for")
    retention_s: float = Field(3600.0, ge=1, description="seconds that events and images are kept after a job's end")
    abandonment_s: float = Field(10.0, ge=1, description="seconds after which a job of Generate without followers ends")
    leader_ttl_s: float = Field(3.0, ge=0.5, le=60, description="seconds after which a silent leader is replaced")
    connection_age_s: float = Field(300.0, ge=10, description="age at which clients are asked to connect anew")

    def admission_limits(self) -> AdmissionLimits:
        """The bounds of requests."""
        return AdmissionLimits(
            max_num_images=self.max_num_images,
            default_timeout_s=self.default_timeout_s,
            max_timeout_s=self.max_timeout_s,
            default_model=self.default_model,
        )

    def store_settings(self) -> JobStoreSettings:
        """How jobs are kept."""
        return JobStoreSettings(
            max_waiting=self.max_waiting, retention_s=self.retention_s, follower_lease_s=self.abandonment_s
        )

    def engine_bounds(self) -> EngineBounds:
        """How far the engine goes."""
        return EngineBounds(plan_ahead=self.plan_ahead, max_deaths=self.max_deaths, read_ahead=self.read_ahead)

    def chosen_policy(self) -> Policy:
        """The policy with its bounds."""
        bounds = PolicyBounds(unet_batch=self.unet_batch, vae_batch=self.vae_batch, prepare_ahead=self.prepare_ahead)
        return POLICIES[self.policy](bounds)
