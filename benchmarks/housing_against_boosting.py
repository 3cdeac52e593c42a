"""California housing: the R2 of configs/housing_mlp.toml beside scikit-learn's gradient boosting, on the same split.

    pip install scikit-learn
    python benchmarks/housing_against_boosting.py runs/housing_mlp

The run's own config says which districts are for what; boosting learns from the run's training part and the test is
the run's. The last line is JSON.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from functrain.runs import read_config


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run of configs/housing_mlp.toml")
    run = parser.parse_args().run
    data = read_config(run).data.load()  # pyright: ignore[reportOptionalMemberAccess]
    result = json.loads((run / "result.json").read_text())
    ours = {name: result["test"][name] for name in ("r2", "rmse", "absolute_error")}
    rows = {"functrain, MLP": ours | {"seconds": sum(result["seconds"].values())}}
    peers = {
        "scikit-learn, gradient boosting": GradientBoostingRegressor(random_state=0),
        "the same, 1,000 trees of depth 5": GradientBoostingRegressor(n_estimators=1000, max_depth=5, random_state=0),
        "scikit-learn, histogram boosting": HistGradientBoostingRegressor(random_state=0),
    }
    x, y = (np.asarray(data.train[name], float) for name in ("x", "y"))
    for name, peer in peers.items():
        start = time.perf_counter()
        peer.fit(x, y.ravel())
        found, truth = peer.predict(data.test["x"]), np.ravel(data.test["y"])
        rows[name] = {
            "r2": r2_score(truth, found),
            "rmse": root_mean_squared_error(truth, found),
            "absolute_error": mean_absolute_error(truth, found),
            "seconds": time.perf_counter() - start,
        }
    print(f"{'':34}{'R2':>8}{'RMSE':>8}{'MAE':>8}{'seconds':>9}")
    for name, row in rows.items():
        print(f"{name:34}{row['r2']:8.4f}{row['rmse']:8.4f}{row['absolute_error']:8.4f}{row['seconds']:9.1f}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
