"""A model's own scheduler, with the options that its pipeline gives it."""

import importlib.util
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers.utils.import_utils import DummyObject

from synerdiff.models.layout import ModelLayout, in_one_line

SCHEDULER_CONFIG = "scheduler_config.json"


class SchedulerNotMade(Exception):
    """diffusers cannot make a scheduler: names its class and the reason."""


def make_scheduler(class_name: str, options: Mapping[str, Any], **overrides: Any) -> Any:
    """A diffusers scheduler, by `from_config`. Raises SchedulerNotMade."""
    scheduler_class: Any = getattr(diffusers, class_name, None)
    if isinstance(scheduler_class, DummyObject):
        missing = " and ".join(name for name in scheduler_class._backends if importlib.util.find_spec(name) is None)
        raise SchedulerNotMade(f"{class_name} needs {missing}, which is not installed")
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, diffusers.SchedulerMixin)):
        raise SchedulerNotMade(f"{class_name} is not one of the schedulers of diffusers {diffusers.__version__}")
    constructor: Any = scheduler_class
    try:
        return constructor.from_config(dict(options), **overrides)
    except Exception as error:  # constructors raise any error for options that they do not check
        raise SchedulerNotMade(f"{class_name} cannot be made of its config: {in_one_line(error)}") from error


def own_scheduler_config(layout: ModelLayout) -> dict[str, Any]:
    """All options that diffusers' pipeline of this directory has, with `_class_name`. Raises ModelLoadError."""
    library, class_name = layout.component("scheduler")
    if library != "diffusers":
        raise layout.refuse(f"its scheduler {class_name} is not one of diffusers' but of {library}")
    options = layout.config("scheduler", SCHEDULER_CONFIG)
    if not isinstance(options.get("_class_name", ""), str):
        raise layout.refuse(f"scheduler/{SCHEDULER_CONFIG} has a _class_name that is no text")
    try:
        scheduler = make_scheduler(class_name, options)
    except SchedulerNotMade:
        return options | {"_class_name": class_name}
    correct(layout.pipeline_class, scheduler=scheduler)
    return dict(scheduler.config) | {"_class_name": class_name}


def correct(pipeline_class: str, **components: Any) -> None:
    """Have the constructor of a diffusers pipeline correct the configs of `components`, in place."""
    constructor = getattr(diffusers, pipeline_class)
    required = [
        name
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they ask for a correction of the files
        constructor(**{**dict.fromkeys(required), **components})
