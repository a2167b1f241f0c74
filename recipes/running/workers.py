"""Processes that work on one sweep together, and what happens when one of them dies.

keras-tuner's chief hands out the trials, its workers run them. A worker that dies holds its trial;
the chief gives it back to whoever comes with the same KERASTUNER_TUNER_ID, and waits for ever if
nobody comes. So the launcher starts a dead worker again under its id, and the trial goes on from
its backup. If it has died too often in the same trial, the launcher fails it at the oracle.
"""

import os
import socket
import subprocess
import sys
import time

from recipes.running import sweep as sweeps

CHIEF = "chief"
POLL = 0.2  # seconds
SAY = 5  # seconds, from one look at the trials to the next
MOST_FAILURES = 3  # trials that fail by deaths, one after the other, until the sweep is given up


def launch(sweep):
    """Starts the workers of this machine, and the chief if it is to be here; waits for the end.

    Raises:
      ChildProcessError: if the chief dies, or `MOST_FAILURES` trials in a row kill their workers.
    """
    here = not sweep.options.chief
    address = ("127.0.0.1", _free_port()) if here else _address(sweep.options.chief)
    crew = Crew(sweep, address)
    try:
        if here:
            crew.start(CHIEF)
        for number in range(sweep.options.workers):
            crew.start(f"{socket.gethostname()}-{number}")
        progress, due = sweeps.Progress(sweep), 0
        while crew.working:
            time.sleep(POLL)
            crew.look()
            if here and time.monotonic() >= due:  # where keras-tuner's files are
                progress.say()
                due = time.monotonic() + SAY
    finally:
        crew.stop()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _address(text):
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"chief={text}: give the chief's HOST:PORT, for instance "
                         "chief=192.168.0.7:8000.")
    return host, int(port)


class Crew:
    """The processes of this machine.

    Attributes:
      working: {id: process} of the workers that are not through.
    """

    def __init__(self, sweep, address):
        self.sweep, self.address = sweep, address
        self.working, self.chief, self.processes = {}, None, []
        self.deaths = {}  # (worker, trial): how often
        self.failures, self.complete = 0, 0
        self.client = None

    def start(self, name):
        """Starts a worker, or the chief, with its output in a file."""
        path = self.sweep.folder / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "recipes", "sweep", self.sweep.name, *self.sweep.words],
                env={**os.environ, **self._environment(name)}, stdout=log, stderr=subprocess.STDOUT)
        print(f"{name}: process {process.pid}, {path}", flush=True)
        self.processes.append(process)
        if name == CHIEF:
            self.chief = process
        else:
            self.working[name] = process

    def _environment(self, name):
        """What makes a process keras-tuner's chief or worker."""
        no_accelerator = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        return {"KERASTUNER_TUNER_ID": name, "KERASTUNER_ORACLE_IP": self.address[0],
                "KERASTUNER_ORACLE_PORT": str(self.address[1]),
                **(no_accelerator if name == CHIEF else {})}

    def look(self):
        """Deals with who has ended since."""
        if self.chief is not None and self.chief.poll() is not None:
            if self.chief.returncode != 0:
                raise ChildProcessError(
                    f"The chief has died ({self.chief.returncode}); its output is in "
                    f"{self.sweep.folder / 'logs'}. The same command again goes on.")
            self.working = {}  # it has told all who asked that there is no work left
        for name, process in list(self.working.items()):
            if process.poll() is None:
                continue
            del self.working[name]
            if process.returncode != 0 and not self._give_up_trial(name, process.returncode):
                self.start(name)

    def _give_up_trial(self, name, code):
        """After a death: fails the trial if it is one too many. True: there is no work left."""
        trial = self._oracle().create_trial(name)  # the one that it holds, or its next
        if trial.status == "STOPPED":
            return True
        key = name, trial.trial_id
        self.deaths[key] = self.deaths.get(key, 0) + 1
        print(f"{name}: died ({code}) in trial {trial.trial_id}, "
              f"{self.deaths[key]} of {self.sweep.options.restarts + 1}", flush=True)
        if trial.status == "RUNNING" and self.deaths[key] > self.sweep.options.restarts:
            trial.status = "FAILED"
            sweeps.note_failure(
                self.sweep, trial.trial_id, f"The worker {name} died {self.deaths[key]} times in "
                f"this trial, the last time with exit status {code}.")
            self._oracle().end_trial(trial)
            self._count_failure()
        return False

    def _count_failure(self):
        complete = sum(t["status"] == "COMPLETED" for t in sweeps.trials(self.sweep))
        self.failures = self.failures + 1 if complete == self.complete else 1
        self.complete = complete
        if self.failures >= MOST_FAILURES:
            raise ChildProcessError(
                f"{self.failures} trials in a row have killed their workers; their output is in "
                f"{self.sweep.folder / 'logs'}.")

    def _oracle(self):
        """A client of the chief's oracle, as a worker has one."""
        if self.client is None:
            from keras_tuner.src.distribute import oracle_client  # has no public name

            before = dict(os.environ)
            os.environ.update(self._environment("launcher"))  # it reads them when it is made
            try:
                self.client = oracle_client.OracleClient(None)
            finally:
                os.environ.clear()
                os.environ.update(before)
        return self.client

    def stop(self):
        """Ends what is left. Every worker is through, or the sweep is given up: the chief, whose
        state is on disk, would otherwise wait for another 20 seconds."""
        left = [process for process in self.processes if process.poll() is None]
        for process in left:
            process.terminate()
        for process in left:
            process.wait()
