"""What rq does with the tasks that sidebike is given: one `name value` a line.

Arguments: the URL of a Redis, the rq program, the seconds that enqueues are measured.
"""

import subprocess
import sys
import time

from redis import Redis
from rq import Queue

# Jobs whose start is timed, and jobs that one worker runs.
STARTS = 100
JOBS = 300
# The longest a job may take to be there.
PATIENCE = 60


def wait_for(there):
    begin = time.time()
    while not there():
        if time.time() - begin > PATIENCE:
            sys.exit("in vain: the worker's result")
        time.sleep(0.002)


def memory(pid):
    """Megabytes, of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as status:
        kib = next(line for line in status if line.startswith("VmRSS:"))
    return int(kib.split()[1]) * 1024 / 1e6


def main():
    url, rq, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    queue = Queue("bench", connection=Redis.from_url(url))
    run = ("subprocess.call", ["sh", "-c", "true"])

    begin, count = time.time(), 0
    while time.time() - begin < seconds:
        queue.enqueue(*run)
        count += 1
    print("enqueues", count / (time.time() - begin))
    queue.empty()

    command = [rq, "worker", "--quiet", "--url", url, "bench"]
    worker = subprocess.Popen(command)
    try:
        times = []
        for _ in range(STARTS):
            begin = time.time()
            # The job's result is the time at which it ran.
            job = queue.enqueue("time.time")
            wait_for(lambda: job.return_value() is not None)
            times.append(job.return_value() - begin)
        # The first ones wait for the worker.
        times = sorted(times[10:])
        print("start", times[len(times) // 2])
        print("memory", memory(worker.pid))

        jobs = [queue.enqueue(*run) for _ in range(JOBS)]
        wait_for(lambda: jobs[JOBS // 10].return_value() is not None)
        begin = time.time()
        wait_for(lambda: jobs[-1].return_value() is not None)
        print("jobs", (JOBS - JOBS // 10) / (time.time() - begin))
    finally:
        worker.terminate()
        worker.wait()


main()
