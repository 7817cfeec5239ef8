"""What rq does with the tasks that sidebike is given: one `name value` a line.

Arguments: the URL of a Redis, the rq program, the seconds that enqueues are measured.
"""

import datetime
import subprocess
import sys
import time

from redis import Redis
from rq import Queue

# Jobs whose start is timed, and jobs that one worker runs.
STARTS = 100
JOBS = 300
# Jobs in one call, a chain, a parent with its children, jobs that are due at a time: as in workflow.rs.
LIST = 1000
LISTS = 20
CHAIN = 100
FIRINGS = 10
# The longest a job may take to be there.
PATIENCE = 60


def wait_for(there):
    begin = time.time()
    while not there():
        if time.time() - begin > PATIENCE:
            sys.exit("in vain: the worker's result")
        time.sleep(0.002)


def median(times):
    return sorted(times)[len(times) // 2]


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

    times = []
    for _ in range(LISTS):
        jobs = [Queue.prepare_data(run[0], args=run[1:]) for _ in range(LIST)]
        begin = time.time()
        queue.enqueue_many(jobs)
        times.append(time.time() - begin)
        queue.empty()
    print("list", median(times))

    command = [rq, "worker", "--quiet", "--with-scheduler", "--url", url, "bench"]
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
        print("start", median(times[10:]))
        print("memory", memory(worker.pid))

        jobs = [queue.enqueue(*run) for _ in range(JOBS)]
        wait_for(lambda: jobs[JOBS // 10].return_value() is not None)
        begin = time.time()
        wait_for(lambda: jobs[-1].return_value() is not None)
        print("jobs", (JOBS - JOBS // 10) / (time.time() - begin))

        begin = time.time()
        job = queue.enqueue(*run)
        for _ in range(CHAIN - 1):
            job = queue.enqueue(*run, depends_on=job)
        wait_for(lambda: job.return_value() is not None)
        print("chain", time.time() - begin)

        begin = time.time()
        parent = queue.enqueue(*run)
        for _ in range(LIST - 1):
            job = queue.enqueue(*run, depends_on=parent)
        wait_for(lambda: job.return_value() is not None)
        print("children", time.time() - begin)

        first = int(time.time()) + 2
        dues = [datetime.datetime.fromtimestamp(first + n, datetime.timezone.utc) for n in range(FIRINGS)]
        jobs = [queue.enqueue_at(due, "time.time") for due in dues]
        wait_for(lambda: all(job.return_value() is not None for job in jobs))
        print("firing", median([job.return_value() - due.timestamp() for job, due in zip(jobs, dues)]))
    finally:
        worker.terminate()
        worker.wait()


main()
