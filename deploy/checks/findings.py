"""What a check reports."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong. `check`: who says so; `where`: as "Deployment/unet-worker unet"."""

    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.where}: {self.message}"
