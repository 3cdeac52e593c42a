"""MLflow: the run's metrics in an experiment there. Its own environment says where (MLFLOW_TRACKING_URI, ...)."""

import re
import time
from typing import Any

from functrain.observe.tracking import Tracker

_METRICS, _PARAMS, _LONGEST = 1000, 100, 6000
"""What MLflow takes in one request, and the longest text of a parameter."""


class MLflow(Tracker):
    """An MLflow run for a run directory; a resumed run goes on in it.

    MLflow keeps every point it is given, also two of one step; what was sent before a kill is not sent again. Its
    parameters are fixed: they are those of the run's beginning. Metrics are sent while training waits: where a server
    is gone, it waits once, as long as MLFLOW_HTTP_REQUEST_MAX_RETRIES and _TIMEOUT say.
    """

    name = "mlflow"
    _client: Any

    def _start(self, known):
        self._client = self._library.MlflowClient()
        if known:
            self._client.update_run(known, status="RUNNING")
            return known
        experiment = self._client.get_experiment_by_name(self._of)
        where = experiment.experiment_id if experiment else self._client.create_experiment(self._of)
        run = self._client.create_run(where, run_name=self._out.name).info.run_id
        param = self._library.entities.Param
        params = [param(_legal(name), str(value)[:_LONGEST]) for name, value in self._config.items()]
        for i in range(0, len(params), _PARAMS):
            self._client.log_batch(run, params=params[i : i + _PARAMS])
        return run

    def _log(self, step, values):
        now, metric = int(1000 * time.time()), self._library.entities.Metric
        metrics = [metric(_legal(name), value, now, step) for name, value in values.items()]
        for i in range(0, len(metrics), _METRICS):
            self._client.log_batch(self._id, metrics=metrics[i : i + _METRICS])

    def _show(self, step, paths):
        for name, path in paths.items():
            self._client.log_artifact(self._id, str(path), f"figures/{name}/step{step:08d}")

    def _summarize(self, results):
        self._log(max(self._sent.values(), default=0), results)

    def _finish(self, complete):
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")


def _legal(name):
    """MLflow's names have letters, digits and _-./: and spaces."""
    return re.sub(r"[^\w\-./: ]", "_", name)
