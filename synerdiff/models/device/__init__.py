"""Everything that depends on the device a model runs on, behind one interface: see `Device`."""

from synerdiff.models.device.contract import Capture, Device, DeviceOptions, Mark, Timeline
from synerdiff.models.device.faults import DeviceFailed, Fault, fault_of
from synerdiff.models.device.opening import open_device

__all__ = ["Capture", "Device", "DeviceFailed", "DeviceOptions", "Fault", "Mark", "Timeline", "fault_of", "open_device"]
