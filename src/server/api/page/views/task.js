// One task: its state and facts, its machines as tiles, and one execution in detail.
// What it has to do with is in task_related.js, its files in task_files.js, the rollout in task_rollout.js, the
// undos in task_undo.js, the results of all executions in task_results.js, the output of one in task_output.js.

const FIRST_TILES = 400;
const MORE_TILES = 600;
const FIRST_LANES = 150;
const MORE_LANES = 300;
// What the server takes if a task does not say it.
const DEFAULT_DEADMAN_SECONDS = 60;

const taskView = {
  id: 'task',
  title: 'Task',
  tab: 'home',
  search: 'task-search',
  needsName: true,
  missing: 'No such task',
  // The task as last fetched, and the instance or execution that the address names.
  task: null,
  picked: undefined,

  open([name, picked]) {
    if (name !== this.name) this.reset(name);
    this.picked = picked;
    outputReader.reset();
    if (this.task) this.render();
  },

  reset(name) {
    this.name = name;
    this.task = null;
    this.onlyState = '';
    undoFilter.onlyState = '';
    undoWatchedUntil = 0;
    resetRelated();
    byId('undo-fold').open = false;
    this.mostTiles = FIRST_TILES;
    this.mostLanes = FIRST_LANES;
    this.resultsTab = 'output';
    byId('task-search').value = '';
    const lists =
      ['facts', 'bar', 'steps', 'chips', 'grid', 'files-list'].map(name => 'task-' + name)
        .concat('result-groups', 'timeline-lanes', 'undo-chips', 'undo-facts');
    clear(...lists.map(byId));
    setText(byId('task-announcement'), '');
    setText(byId('task-name'), '…');
    setText(byId('task-command'), '');
    setVisible(byId('execution'), false);
  },

  // A task that has ended and is clean does not change: then only the rest of the output is fetched.
  async poll(signal) {
    if (!this.task || this.mayChange() || isTelling(this.task)) {
      this.task = (await get('task/' + encodeURIComponent(this.name), signal)).data;
    }
    this.render();
    const relatedMayChange = await pollRelated(this.task, signal) || isTelling(this.task);
    renderRelated(this.task);
    const execution = this.current();
    const moreOutput = execution && await outputReader.poll(this.task, execution, signal);
    if (this.mayChange()) return 1000;
    if (moreOutput) return 300;
    return relatedMayChange && RELATED_PAUSE_MS;
  },

  mayChange() {
    return !isSettled(this.task) || serverNow() < undoWatchedUntil;
  },

  back() {
    return this.picked ? taskAddress(this.name) : '#/';
  },

  isPicked({instance, execution}) {
    return this.picked && (instance === this.picked || execution === this.picked);
  },

  // The execution that was picked, or the only one there is.
  current() {
    const all = this.task.result;
    return all.find(execution => this.isPicked(execution)) ?? (all.length === 1 ? all[0] : null);
  },

  // The executions that the search and the chosen state leave, by label.
  found() {
    const search = byId('task-search').value;
    return this.task.result
      .filter(e => !this.onlyState || e.state === this.onlyState)
      .filter(e => !undoFilter.onlyState || e.undo?.state === undoFilter.onlyState)
      .filter(e => matches([e.machineLabel, e.instance, e.host, e.msg], search))
      .sort((a, b) => compareNames(a.machineLabel, b.machineLabel));
  },

  render() {
    const {task} = this;
    const several = task.result.length > 1;
    const found = this.found();
    const current = this.current();
    renderTaskHead(task);
    renderRelated(task);
    renderTaskButtons(task);
    renderTaskProgress(task);
    renderRollout(task);
    renderUndos(task);
    renderTaskFiles(task);
    this.renderTiles(several ? found : []);
    setClass(byId('task-split'), several && current ? 'picked' : '');
    setVisible(byId('execution'), current);
    if (current) renderExecution(current, several);
    if (!several) this.resultsTab = 'timeline';
    renderResults(this, found);
  },

  renderTiles(executions) {
    const shown = executions.slice(0, this.mostTiles);
    setVisible(byId('task-machines'), this.task.result.length > 1);
    renderList(byId('task-grid'), shown, execution => execution.execution, makeTile);
    setVisible(byId('task-grid-more'), executions.length > this.mostTiles);
  },
};

function renderTaskHead(task) {
  document.title = `${safeLine(task.name).slice(0, 60)} · ${task.state} · sidebike`;
  setText(byId('task-id'), task.id);
  setLine(byId('task-name'), task.name);
  setBadge(byId('task-state'), task.state);
  setText(byId('task-message'), task.msg || '');
  setText(byId('task-command'), safeText(commandOf(task)));
  renderFacts(byId('task-facts'), taskFacts(task));
}

function taskFacts(task) {
  const {detail, rollout, instances, keepAlive} = task;
  const {undo} = detail;
  const toAll = task.lateJoin ? 'all, and those that appear later' : 'all';
  return [
    ['Machines', task.machinePattern, 'mono'],
    ['But not', task.exclude, 'mono'],
    ['Tags', pairsText(task.machineTags, '  '), 'mono'],
    ['Hosts', task.hosts, 'mono'],
    ['Instances', instances && joinFirst(instances, 3), 'mono'],
    ['Mode', task.mode === 'any' ? 'any one' : toAll],
    ['Expected', formatExpect(task.expect)],
    ['Matched', task.matched],
    ['At most', task.maxTargets],
    ['Spared', task.spared],
    ['Keep alive', keepAlive?.keep ?? keepAlive],
    ['… of', keepAlive?.pool, 'mono'],
    ['At the same time', rollout?.concurrency],
    ['Pause after each step', pauseSetting(rollout)],
    ['Failures allowed', rollout && (rollout.maxFailures ?? 0)],
    ['First step', rollout?.canary, 'mono'],
    ['Order', rollout?.order],
    ['Submitted', formatTime(task.createdAt)],
    ['Begins', task.startAt && formatTime(task.startAt)],
    [task.finishedAt ? 'Took' : 'For', taskDuration(task)],
    ['Priority', task.priority],
    ['Place in the queue', task.position],
    ['Unique key', task.uniqueKey, 'mono'],
    ['If another has the key', duplicateText(task)],
    ['Spread over', formatLimit(task.spread)],
    ['Waits for others at most', formatLimit(task.blockedTtl)],
    ['Time-out', formatLimit(detail.timeout)],
    ['Undo', undo && (undo.command ?? undo.argv.join(' ')), 'mono'],
    ['Check of the undo', undo?.check ?? undo?.checkArgv?.join(' '), 'mono'],
    ["Dead man's switch", undo && formatLimit(undo.deadman ?? DEFAULT_DEADMAN_SECONDS)],
    ['Lock', undo?.lock, 'mono'],
    ['ttl', formatLimit(task.ttl)],
    ['Workspace', detail.workspace, 'mono'],
    ['Environment', pairsText(detail.env, '  '), 'mono'],
    ['Standard input', detail.stdin && plural(detail.stdin.length, 'character')],
    ['Further attempts', task.retry?.max],
    ...(task.probes ?? []).map(probeFact),
  ];
}

function duplicateText({onDuplicate, replaceRunning}) {
  return joinPresent([onDuplicate, replaceRunning && 'also if it runs']);
}

function probeFact({name, state, inARow, msg}) {
  const failures = inARow > 0 && `${inARow} failed in a row`;
  return ['Probe ' + name, joinPresent([stateName(state), failures, msg])];
}

function pauseSetting(rollout) {
  return rollout?.pause === 'approve' ? 'until approved' : formatLimit(rollout?.pause);
}

// Why the first execution waits that says it.
function firstMessage({result}) {
  return safeLine(result.find(({state, msg}) => state === 'queued' && msg)?.msg);
}

function renderTaskButtons(task) {
  const count = executionCount(task);
  const unsuccessful = endedCount(task) - task.counts.succeeded;
  const someOfThem = unsuccessful > 0 && (unsuccessful < count || !task.finishedAt);
  renderRolloutButtons(task);
  setVisible(byId('task-cancel'), !task.finishedAt);
  setVisible(byId('task-rerun'), someOfThem);
  setText(byId('task-rerun'), `Rerun the ${unsuccessful} that did not succeed`);
  setVisible(byId('task-rerun-all'), task.finishedAt);
  setText(byId('task-rerun-all'), count > 1 ? 'Rerun all' : 'Rerun');
  byId('task-edit').href = '#/submit?from=' + encodeURIComponent(task.id);
}

function renderTaskProgress(task) {
  const {counts} = task;
  const count = executionCount(task);
  const ended = `${endedCount(task)} of ${count} ended`;
  const progress = joinPresent([ended, counts.running > 0 && `${counts.running} running`]);
  const why = firstMessage(task);
  const waiting = {
    waiting: why || 'Waiting for a machine that matches',
    scheduled: 'Not begun: its time has not come',
    blocked: 'Not begun: it waits for others',
  };
  setText(byId('task-progress'), waiting[task.state] ?? joinPresent([progress, why]));
  // Read out by screen readers, so it changes with the state only and not with each execution.
  const succeeded = task.finishedAt ? `, ${counts.succeeded} of ${count} succeeded` : '';
  const {rolloutState} = task;
  const rollout = rolloutState ? `, rollout ${rolloutState.state}, step ${rolloutState.step}` : '';
  setText(byId('task-announcement'), `Task ${task.state}${rollout}${succeeded}`);
  renderBar(byId('task-bar'), counts);
  const states = STATES.filter(state => counts[state] || taskView.onlyState === state);
  renderChips(byId('task-chips'), states, taskView, state => taskView.task.counts[state]);
}

// The names of the machines of the task that is shown.
let taskNames = {};

// The machine of an execution, as its name.
function labelOf({instance, machineLabel}) {
  const {task} = taskView;
  if (taskNames.task !== task) taskNames = {task, names: machineNames(task.result)};
  return (instance && taskNames.names.get(instance)) || machineLabel || 'no machine yet';
}

// How long an execution ran, or has run up to now.
function executionDuration({durationMs, startedAt, finishedAt}) {
  if (durationMs != null) return formatDuration(durationMs);
  if (!startedAt) return '';
  return formatDuration((parseTime(finishedAt) ?? serverNow()) - parseTime(startedAt));
}

function makeTile() {
  const name = element('b', 'ellipsis');
  const state = element('span', 'ellipsis');
  const took = element('span', 'num');
  const link = element('a', {}, name, element('span', {}, state, took));
  return {
    el: element('li', {}, link),
    update(execution) {
      const {machineLabel, host, msg} = execution;
      link.href = taskAddress(taskView.name, execution);
      const notUndone = isNotUndone(execution);
      setClass(link, `tile s-${execution.state}${notUndone ? ' not-undone' : ''}`);
      setFlag(link, 'aria-current', taskView.isPicked(execution));
      setLine(name, labelOf(execution));
      setText(took, executionDuration(execution));
      setText(state, notUndone ? 'NOT UNDONE' : outcomeOf(execution));
      const undo = execution.undo && undoName(execution.undo);
      const parts = [machineLabel, host, stateName(execution.state), msg, undo];
      link.title = joinPresent(parts.map(safeLine));
    },
  };
}

// The state in the few characters of a tile: a failure as its exit code or signal.
function outcomeOf({state, exitCode, signal}) {
  if (state !== 'failed') return stateName(state);
  return exitCode != null ? `exit ${exitCode}` : safeLine(signal || 'failed');
}

// The panel of one execution; `several` if there are others, shown as tiles beside it.
function renderExecution(execution, several) {
  const canCancel = several && execution.instance && !hasEnded(execution);
  setLine(byId('execution-name'), labelOf(execution));
  setBadge(byId('execution-state'), execution.state);
  setVisible(byId('execution-cancel'), canCancel);
  setVisible(byId('execution-close'), several);
  byId('execution-close').href = taskAddress(taskView.name);
  renderFacts(byId('execution-facts'), executionFacts(execution));
  renderUndo(execution);
}

const PHASES = {files: 'lays down its files', fetch: 'hands back files'};

function executionFacts(execution) {
  const {attempt, attempts, truncatedBytes} = execution;
  return [
    ['Host', execution.host],
    ['Instance', execution.instance, 'mono'],
    ['Now', PHASES[execution.phase]],
    ['Exit code', execution.exitCode],
    ['Signal', execution.signal],
    ['Why', execution.msg],
    ['Attempt', attempt > 1 && attempt],
    ['Earlier attempts', attempts?.map(earlier => stateName(earlier.state)).join(', ')],
    ['Started', formatTime(execution.startedAt)],
    ['Ran', executionDuration(execution)],
    ['Output left out', truncatedBytes > 0 && plural(truncatedBytes, 'byte')],
  ];
}

byId('task-search').oninput = () => {
  if (taskView.task) taskView.render();
};
byId('task-grid-more').onclick = () => {
  taskView.mostTiles += MORE_TILES;
  taskView.render();
};
byId('execution-copy').onclick = () => copyToClipboard(byId('execution-output').textContent);

// Changes or reruns the task, or a part of it; returns the task that comes of it.
async function changeTask(what) {
  const {data} = await post(`task/${encodeURIComponent(taskView.task.id)}/${what}`);
  return data;
}

async function changeShownTask(what) {
  taskView.task = await changeTask(what);
  startPolling();
}

async function rerunTask(what) {
  const task = await changeTask(what);
  location.hash = taskAddress(task.id);
  showToast('Started again as a new task');
}

onClick(byId('task-cancel'), async () => {
  const left = executionCount(taskView.task) - endedCount(taskView.task);
  const verb = left === 1 ? 'has' : 'have';
  const consequence = left > 0
    ? `${plural(left, 'execution')} ${verb} not ended. Queued ones never start, running ones are ` +
      'killed.'
    : 'It will not be sent to any machine.';
  if (await confirmFirst('Cancel this task?', consequence, 'Cancel it')) {
    await changeShownTask('cancel');
  }
});
onClick(byId('execution-cancel'), async () => {
  const {instance} = taskView.current();
  await changeShownTask('cancel?machine=' + encodeURIComponent(instance));
});
onClick(byId('task-rerun'), () => rerunTask('rerun'));
onClick(byId('task-rerun-all'), () => rerunTask('rerun?all=1'));
