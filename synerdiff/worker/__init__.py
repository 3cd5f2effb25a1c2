"""The skeleton of a stage worker: all that is the same whether it denoises or decodes.

From settings to exit status (`main`, `process`, `loading`), one leader at a time (`stage_worker`, `leader`,
`run_stream`), the device's work in order (`device_thread`, `halving`), and the end of what cannot go on (`fail_stop`,
`liveness`). A stage brings a `Stage`, a `StageWorker` and a `RunServicer` of its own.
"""
