// One task: what came of all its executions, as output with identical results together, or as a
// timeline.

const MOST_GROUPS = 60;
// A group names so many machines in its line; when unfolded so many.
const NAMES_IN_LINE = 12;
const NAMES_UNFOLDED = 500;
// A group's output is cut at these until it is asked for.
const BRIEF_LINES = 200;
const BRIEF_CHARACTERS = 20_000;

const RESULTS_TABS = ['output', 'timeline'];

function renderResults(view, executions) {
  setVisible(byId('results'), view.task.result.length);
  setVisible(byId('results-tab-output'), view.task.result.length > 1);
  for (const tab of RESULTS_TABS) {
    byId('results-tab-' + tab).setAttribute('aria-pressed', view.resultsTab === tab);
    setVisible(byId('results-' + tab), view.resultsTab === tab);
  }
  if (view.resultsTab === 'output') renderGroups(executions);
  else renderTimeline(view, executions);
}

for (const tab of RESULTS_TABS) {
  byId('results-tab-' + tab).onclick = () => {
    taskView.resultsTab = tab;
    taskView.render();
  };
}
byId('timeline-more').onclick = () => {
  taskView.mostLanes += MORE_LANES;
  taskView.render();
};

// ---- Output

// Executions with the same result and output are one group, the largest first.
function renderGroups(executions) {
  const withResult = executions.filter(e => hasEnded(e) || e.output.length);
  const groups = [...groupBy(withResult, resultOf)].sort(([, a], [, b]) => b.length - a.length);
  let summary = 'nothing yet';
  if (groups.length) {
    summary = plural(groups.length, 'result');
    if (withResult.length > groups.length) summary += ', identical ones together';
    if (groups.length > MOST_GROUPS) summary += `; the first ${MOST_GROUPS} are shown`;
  }
  setText(byId('results-summary'), summary);
  setVisible(byId('timeline-more'), false);
  const shown = groups.slice(0, MOST_GROUPS);
  renderList(byId('result-groups'), shown, ([result]) => result, ([, [first]]) => makeGroup(first));
}

function resultOf({state, exitCode, signal, msg, output, undo}) {
  return [state, exitCode, signal, msg, isNotUndone({undo}), ...output].join('\n');
}

// A group of executions that are like this one.
function makeGroup({state, exitCode, signal, msg, output, undo}) {
  const count = element('b', 'num');
  const firstNames = element('span', 'ellipsis');
  const names = element('div', 'members');
  const outcome = joinPresent([stateName(state), exitCode && `exit ${exitCode}`, safeLine(signal)]);
  const badge = element('span', 'state s-' + state, element('i', 'dot'), count);
  const how = element('span', 'soft', outcome);
  const left = element('b', 'error', isNotUndone({undo}) ? 'NOT UNDONE' : '');
  const summary = element('summary', {}, badge, how, left, firstNames);
  const el = element('details', {class: 'card group', open: ''}, summary, names);
  el.append(...makeGroupOutput(safeText(withoutStyles(output.map(lastState).join('\n'))), safeLine(msg)));
  return {
    el,
    update([, executions]) {
      const labels = executions.map(labelOf);
      const many = labels.length > NAMES_IN_LINE;
      setText(count, String(labels.length));
      setLine(firstNames, joinFirst(labels, NAMES_IN_LINE));
      setVisible(names, many);
      if (many) setText(names, safeLine(joinFirst(labels, NAMES_UNFOLDED)));
    },
  };
}

// The output, its beginning only if it is long, then with a button for the rest.
function makeGroupOutput(full, message) {
  const brief = full.split('\n', BRIEF_LINES).join('\n').slice(0, BRIEF_CHARACTERS);
  const box = element('pre', {class: 'output', tabindex: 0}, brief);
  if (message || !full) {
    const text = (message || 'no output') + (full && '\n');
    box.prepend(element('span', 'gap', text));
  }
  if (brief.length === full.length) return [box];
  const button = element('button', 'bare', 'Show all ' + plural(full.length, 'character'));
  button.onclick = () => {
    setText(box, full);
    button.remove();
  };
  return [box, button];
}

// ---- Timeline

// What the timeline shows: its begin and its length, in milliseconds.
let timelineScale = {from: 0, length: 1};

// A lane per execution, those that started first on top.
function renderTimeline(view, executions) {
  const {createdAt, finishedAt, stoppedBy, undos} = view.task;
  const from = parseTime(createdAt);
  // A task that took no time at all would have no scale.
  const length = Math.max(50, (parseTime(finishedAt) ?? serverNow()) - from);
  timelineScale = {from, length};
  renderAxis(length);
  const started = execution => parseTime(execution.startedAt) ?? Infinity;
  const lanes = executions.slice().sort((a, b) => started(a) - started(b));
  const shown = lanes.slice(0, view.mostLanes);
  setVisible(byId('timeline-legend'), undos || stoppedBy);
  renderList(byId('timeline-lanes'), shown, execution => execution.execution, makeLane);
  setVisible(byId('timeline-more'), lanes.length > view.mostLanes);
  setText(byId('results-summary'), '');
}

// The place of a time on the timeline, in percent of its width.
function timelinePosition(time) {
  const percent = 100 * (time - timelineScale.from) / timelineScale.length;
  return Math.min(100, Math.max(0, percent));
}

// Ticks at 1, 2 or 5 times a power of ten.
function renderAxis(length) {
  const mostTicks = innerWidth < 700 ? 3 : 6;
  const leastStep = length / mostTicks;
  const power = 10 ** Math.floor(Math.log10(leastStep));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= leastStep);
  const ticks = [];
  // Close to the right end there is no room for the text of a tick.
  for (let tick = 0; tick < 0.94 * length; tick += step) ticks.push(tick);
  renderList(byId('timeline-axis'), ticks, tick => tick, tick => ({
    el: element('span', {}, tick ? formatDuration(tick) : '0'),
    update() {
      this.el.style.left = 100 * tick / timelineScale.length + '%';
    },
  }));
}

// Places a bar on the timeline, or a mark if it has no end.
function placeOnTimeline(el, from, until) {
  setVisible(el, from);
  if (!from) return;
  // What is at the very end of the task can still be seen.
  const left = Math.min(99.5, timelinePosition(from));
  el.style.left = left + '%';
  if (until) el.style.width = Math.max(0, timelinePosition(until) - left) + '%';
}

// A mark where the undo was armed, and a bar from its begin to its end; what is owed has no end.
// It was armed before the command started, though the server may hear of it later.
function placeUndo(armed, bar, {undo, startedAt, finishedAt}) {
  const began = parseTime(undo?.beganAt);
  const from = undo?.state === 'owed' ? began ?? parseTime(finishedAt) : began;
  placeOnTimeline(armed, Math.min(parseTime(undo?.armedAt), parseTime(startedAt) ?? Infinity));
  const isOpen = ['running', 'owed'].includes(undo?.state);
  placeOnTimeline(bar, from, (!isOpen && parseTime(undo?.endedAt)) || Infinity);
  setClass(bar, 'undo s-' + undo?.state);
}

// A thin line while an execution waits, a bar while it runs, another while it is undone.
function makeLane() {
  const name = element('a', 'ellipsis');
  const wait = element('i', 'wait');
  const run = element('i');
  const armed = element('i', 'armed');
  const undo = element('i');
  const stop = element('i', 'stop');
  const took = element('span', 'right soft num');
  const track = element('div', 'track', wait, run, undo, armed, stop);
  return {
    el: element('div', 'lane', name, track, took),
    update(execution) {
      const start = parseTime(execution.startedAt);
      const end = parseTime(execution.finishedAt);
      const known = start ?? end;
      setLine(name, labelOf(execution));
      name.href = taskAddress(taskView.name, execution);
      setText(took, executionDuration(execution));
      setClass(run, 's-' + execution.state);
      wait.style.width = timelinePosition(known ?? Infinity) + '%';
      placeOnTimeline(run, known, end ?? Infinity);
      placeUndo(armed, undo, execution);
      placeOnTimeline(stop, parseTime(taskView.task.stoppedBy?.at));
      const at = (word, time) => time && `${word} ${new Date(time).toLocaleTimeString()}`;
      this.el.title = joinPresent([
        safeLine(labelOf(execution)),
        stateName(execution.state),
        at('armed', execution.undo?.armedAt),
        at('from', start),
        at('to', end),
        execution.undo && undoName(execution.undo),
        at('from', execution.undo?.beganAt),
        at('to', execution.undo?.endedAt),
      ]);
    },
  };
}
