// One task: the steps of its rollout, what it does now, and the buttons that pause, resume and stop it.

const ROLLOUT_PHASES = {
  running: 'Rollout running',
  paused: 'Paused',
  stopped: 'Stopped',
  done: 'Rollout done',
};
// More steps than these are too narrow for their numbers.
const MOST_LABELED_STEPS = 20;

function renderRollout(task) {
  const {rolloutState, stoppedBy} = task;
  setVisible(byId('task-rollout'), rolloutState);
  const plan = rolloutState?.plan ?? [];
  setVisible(byId('task-bar'), plan.length < 2);
  setVisible(byId('task-steps'), plan.length > 1);
  setClass(byId('task-steps'), plan.length > MOST_LABELED_STEPS ? 'steps many' : 'steps');
  if (!rolloutState) return;
  const {state, step, started} = rolloutState;
  // Paused or stopped between two steps, it is at the next one, of which nothing has started.
  const before = step > 1 && started <= plan[step - 2] ? 'before ' : '';
  setClass(byId('rollout-state'), 'state s-' + state);
  setText(byId('rollout-state').lastElementChild, ROLLOUT_PHASES[state] ?? safeLine(state));
  setText(byId('rollout-text'), joinPresent([
    plan.length > 1 && `${before}step ${step} of ${rolloutState.of}`,
    `${started} of ${executionCount(task)} started`,
    plural(rolloutState.failures, 'failure'),
    rolloutState.lateJoined && `${rolloutState.lateJoined} joined later`,
    state === 'paused' && pauseText(rolloutState.resumesAt),
    stoppedBy && stopText(stoppedBy),
  ]));
  renderList(byId('task-steps'), rolloutSteps(task), step => step.index, makeStep);
}

function pauseText(resumesAt) {
  if (!resumesAt) return 'until somebody resumes it';
  const left = Math.max(0, parseTime(resumesAt) - serverNow());
  return `goes on in ${formatDuration(Math.ceil(left / SECOND) * SECOND)}`;
}

function stopText({kind, msg, at}) {
  const why = safeLine(msg);
  const causes = {
    user: 'stopped by a user',
    probe: 'stopped by a probe: ' + why,
    keepAlive: 'stopped, too few machines are left alone: ' + why,
  };
  return `${causes[kind] ?? why}, ${formatTime(at)}`;
}

// What is in each step. Executions are numbered in the order of the rollout; what joined later is part
// of the last step.
function rolloutSteps({rolloutState, result}) {
  const {plan, step, state, started} = rolloutState;
  return plan.map((until, index) => {
    const end = index + 1 < plan.length ? until : result.length;
    const executions = result.slice(plan[index - 1] ?? 0, end);
    const counts = {};
    for (const execution of executions) {
      counts[execution.state] = (counts[execution.state] ?? 0) + 1;
    }
    const isNow = index + 1 === step && state !== 'done';
    let barrier = '';
    if (state === 'done' || started > until) barrier = 'passed';
    else if (started === until) barrier = 's-' + state;
    return {index, of: plan.length, size: executions.length, counts, isNow, barrier};
  });
}

// A bar of the step's executions, as wide as its share of all, and the barrier behind it.
function makeStep() {
  const bar = element('div', {class: 'bar', 'aria-hidden': true});
  const label = element('small', 'num');
  return {
    el: element('li', {}, bar, label),
    update({index, of, size, counts, isNow, barrier}) {
      const ended = sum(ENDED_STATES.map(name => counts[name] ?? 0));
      const states = STATES.filter(name => counts[name]);
      const what = states.map(name => `${counts[name]} ${stateName(name)}`).join(', ');
      renderBar(bar, counts);
      setText(label, `${ended}/${size}`);
      setClass(this.el, barrier);
      if (isNow) this.el.setAttribute('aria-current', 'step');
      else this.el.removeAttribute('aria-current');
      this.el.style.flexGrow = size;
      this.el.title = `Step ${index + 1} of ${of}: ${plural(size, 'machine')}: ${what}`;
      this.el.setAttribute('aria-label', this.el.title);
    },
  };
}

// What a task can still start: then it can be paused and stopped.
function renderRolloutButtons(task) {
  const {counts, rolloutState, rollout, lateJoin, finishedAt} = task;
  const waits = counts.held + counts.queued > 0 || task.state === 'waiting' || lateJoin || rollout;
  const isPaused = rolloutState?.state === 'paused';
  const canChange = !finishedAt && !task.stoppedBy && (waits || isPaused);
  setVisible(byId('task-pause'), canChange && !(isPaused && !rolloutState.resumesAt));
  setVisible(byId('task-resume'), canChange && isPaused);
  setVisible(byId('task-stop'), canChange);
}

// Pauses or resumes, and leaves the keyboard's focus on the button that undoes it.
async function pauseOrResume(what, opposite) {
  await changeShownTask(what);
  taskView.render();
  byId(opposite).focus();
}

onClick(byId('task-pause'), () => pauseOrResume('pause', 'task-resume'));
onClick(byId('task-resume'), () => pauseOrResume('resume', 'task-pause'));
onClick(byId('task-stop'), async () => {
  const {counts, rollout, detail} = taskView.task;
  const left = plural(counts.held + counts.queued, 'execution');
  const choice = {
    text: `Cancel what runs now, too (${counts.running + counts.delivered})`,
    checked: rollout?.stopRunning ?? Boolean(detail.undo),
  };
  const consequence = `Nothing more will be started, ${left} will be skipped. It cannot be resumed.`;
  const isSure = await confirmFirst('Stop this task?', consequence, 'Stop it', choice);
  const running = byId('confirm-choice').checked ? 1 : 0;
  if (isSure) await changeShownTask('stop?running=' + running);
});
