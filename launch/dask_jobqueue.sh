#!/bin/bash
# Import a large dataset with workers that come one by one out of a busy Slurm queue, each a job of its own; the import
# begins with the first one that starts. Needs `pip install foundation-hep[slurm]`. On a login node, from the root of the checkout:
#   JOBS=10 bash launch/dask_jobqueue.sh CARD FILES... --to FOLDER [OPTIONS of foundation data import]
# What else a worker's job needs, such as queue and account, is in launch/dask/jobqueue.yaml.
# Where it stops the same command goes on: finished parts are kept. `dask_slurm.sbatch` takes all nodes at once instead.
set -euo pipefail
[[ $# -gt 1 ]] || { echo "usage: dask_jobqueue.sh CARD FILES... --to FOLDER [OPTIONS]" >&2; exit 2; }

[[ ! -f .venv/bin/activate ]] || source .venv/bin/activate
# numpy inside a worker must not take a second processor.
export OMP_NUM_THREADS=1 DASK_LOGGING__DISTRIBUTED=error
DASK_CONFIG=${DASK_CONFIG:-$(dirname "${BASH_SOURCE[0]}")/dask}
export DASK_CONFIG

exec python -c '
import os, subprocess, sys

from dask_jobqueue import SLURMCluster

with SLURMCluster() as cluster:
    cluster.scale(jobs=int(os.environ.get("JOBS", "4")))
    command = [sys.executable, "-m", "foundation", "data", "import", *sys.argv[1:]]
    sys.exit(subprocess.run([*command, "--scheduler", cluster.scheduler_address]).returncode)
' "$@"
