// Tasks: what can be said of one, and a list of them that is kept up to date.

const TASKS_PER_PAGE = 40;

function taskAddress(id, execution) {
  const part = execution ? '/' + encodeURIComponent(execution.instance || execution.execution) : '';
  return '#/task/' + encodeURIComponent(id) + part;
}

// What it runs; '' if it only lays down files.
function commandOf({detail = {}}) {
  return detail.command ?? detail.script ?? (detail.argv ?? []).join(' ');
}

function executionCount(task) {
  return sum(Object.values(task.counts));
}

function endedCount(task) {
  return sum(ENDED_STATES.map(state => task.counts[state]));
}

function hasEnded(execution) {
  return ENDED_STATES.includes(execution.state);
}

// How many of a task's undos are failed or owed.
function notUndoneCount({undos}) {
  return undos ? undos.failed + undos.owed : 0;
}

// Whether a task does not change any more: a debt may be settled, a probe pass again after its end.
function isSettled({finishedAt, undos, clean, probes}) {
  const isRecovering = probes?.some(probe => probe.state === 'recovering');
  return finishedAt && clean !== false && !(undos?.armed || undos?.running || isRecovering);
}

// How long a task took, or has taken up to now.
function taskDuration(task) {
  const end = parseTime(task.finishedAt) ?? serverNow();
  return formatDuration(end - parseTime(task.createdAt));
}

// Names of the tasks that run on each machine: a Map from instance to names.
function runningByInstance(tasks) {
  const names = new Map();
  for (const task of tasks) {
    for (const {state, instance} of task.result) {
      if (state !== 'running') continue;
      names.set(instance, [...(names.get(instance) ?? []), task.name]);
    }
  }
  return names;
}

// A bar with one part per state, as wide as its share of the executions.
function renderBar(bar, counts) {
  const count = sum(Object.values(counts));
  const parts = STATES.filter(state => counts[state])
    .map(state => ({state, percent: 100 * counts[state] / count}));
  renderList(bar, parts, part => part.state, ({state}) => ({
    el: element('span', 's-' + state),
    update({percent}) {
      this.el.style.width = percent + '%';
    },
  }));
}

function makeTaskRow() {
  const state = makeBadge();
  const name = element('b', 'ellipsis');
  const command = element('code', 'ellipsis');
  const count = element('span', 'soft num');
  const left = element('b', 'error num');
  const bar = element('div', 'bar');
  const took = element('span', 'took right soft num');
  const age = element('span', 'ago right soft num');
  const what = element('span', 'what', name, command);
  const progress = element('span', 'done', count, left, bar);
  const link = element('a', 'row task', state, what, progress, took, age);
  return {
    el: element('li', {}, link),
    update(task) {
      const {rolloutState} = task;
      const progressText = joinPresent([
        `${endedCount(task)} / ${executionCount(task)}`,
        ['paused', 'stopped'].includes(rolloutState?.state) && rolloutState.state,
      ]);
      link.href = taskAddress(task.id);
      setBadge(state, task.state);
      setLine(name, task.name);
      setLine(command, commandOf(task));
      const notBegun = {waiting: 'no machine yet', scheduled: 'begins later', blocked: 'waits for others'};
      setText(count, notBegun[task.state] ?? progressText);
      const notUndone = notUndoneCount(task);
      setText(left, notUndone ? ` ${notUndone} not undone` : '');
      renderBar(bar, task.counts);
      setText(took, taskDuration(task));
      setText(age, formatAge(task.createdAt));
      age.title = formatTime(task.createdAt);
    },
  };
}

// A list of tasks, newest first, that grows by a page with each click on "Show more".
//
// The newest page is polled always; an older page only while a task in it may change.
class TaskList {
  // The list, the button for more, and the element that is shown when there are no tasks.
  constructor(box, moreButton, emptyBox) {
    this.box = box;
    this.moreButton = moreButton;
    this.emptyBox = emptyBox;
    this.isShown = () => true;
    this.reset('');
    onClick(moreButton, async () => {
      this.pages.push(await this.fetchPage(this.pages.at(-1).next));
      this.render();
    });
  }

  // `query` is a part of the API's query that filters, such as "&state=running".
  reset(query) {
    this.query = query;
    this.pages = [];
  }

  async fetchPage(cursor, signal) {
    const from = cursor ? '&cursor=' + encodeURIComponent(cursor) : '';
    const path = `task?limit=${TASKS_PER_PAGE}${this.query}${from}`;
    const {data, next} = await get(path, signal);
    return {cursor, next, tasks: data};
  }

  async poll(signal) {
    const {query} = this;
    const newest = await this.fetchPage('', signal);
    if (query !== this.query) return;
    this.replaceNewest(newest);
    for (const page of this.pages.slice(1)) {
      if (page.tasks.every(isSettled)) continue;
      const {tasks} = await this.fetchPage(page.cursor, signal);
      const fresh = new Map(tasks.map(task => [task.id, task]));
      page.tasks = page.tasks.map(task => fresh.get(task.id) ?? task);
    }
    this.render();
  }

  // New tasks push old ones out of the newest page: they move to the top of the second. If none of
  // the old ones is left, tasks may be missing in between, and the older pages are dropped.
  replaceNewest(newest) {
    const [old, second] = this.pages;
    const ids = new Set(newest.tasks.map(task => task.id));
    if (!second || !old.tasks.some(task => ids.has(task.id))) {
      this.pages = [newest];
      return;
    }
    const oldest = newest.tasks.at(-1).createdAt;
    const pushedOut = old.tasks.filter(task => !ids.has(task.id) && task.createdAt <= oldest);
    second.tasks.unshift(...pushedOut);
    newest.next = old.next;
    this.pages[0] = newest;
  }

  // A task that moved between two calls may be in two pages.
  all() {
    const tasks = this.pages.flatMap(page => page.tasks);
    return [...new Map(tasks.map(task => [task.id, task])).values()];
  }

  render() {
    const tasks = this.all().filter(this.isShown);
    renderList(this.box, tasks, task => task.id, makeTaskRow);
    setVisible(this.emptyBox, !tasks.length);
    setVisible(this.moreButton, this.pages.at(-1).next);
  }
}
