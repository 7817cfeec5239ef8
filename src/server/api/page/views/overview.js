// How things stand: counts by state, what waits for longest, the limits and their use.

// Where the tasks that wait for a limit are looked for: among so many that run.
const MOST_WAITING_TASKS = 100;
// So many of them are named.
const NAMED_WAITING_TASKS = 5;

const overviewView = {
  id: 'overview',
  title: 'Overview',
  tab: 'overview',
  // Tasks that may wait for a limit, as last fetched.
  waiting: [],

  open() {},

  async poll(signal) {
    const {data} = await get('summary', signal);
    const someWait = data.limits.some(limit => limit.waiting);
    const path = `task?state=running&limit=${MOST_WAITING_TASKS}`;
    this.waiting = someWait ? (await get(path, signal)).data.filter(task => task.counts.queued) : [];
    this.render(data);
    return 2000;
  },

  render(summary) {
    const {oldest, limits} = summary;
    renderFacts(byId('overview-facts'), overviewFacts(summary));
    setVisible(byId('overview-oldest'), oldest);
    if (oldest) {
      byId('oldest-name').href = taskAddress(oldest.id);
      setText(byId('oldest-name'), safeLine(oldest.name));
      setText(byId('oldest-why'), joinPresent([formatAge(oldest.createdAt), safeLine(oldest.msg)]));
    }
    renderList(byId('limits'), limits, limit => limit.name, makeLimitRow);
    setVisible(byId('limits-empty'), !limits.length);
  },
};

function overviewFacts({tasks, executions, machines, schedules, schedulesDue, suspensions, servers = []}) {
  return [
    ['Tasks', countsText(tasks, TASK_STATES) || 'none'],
    ['Executions', countsText(executions, STATES) || 'none'],
    ['Machines', countsText(machines, Object.keys(machines)) || 'none'],
    ['Schedules', countsText(schedules, Object.keys(schedules))],
    ['Schedules due', schedulesDue > 0 && schedulesDue],
    ['Suspended', suspensions.map(suspensionText).join('; ')],
    ['Servers', servers.map(serverText).join('; ')],
  ];
}

function serverText({address, version, leads, since, differing}) {
  const what = differing.length && `OTHER ${differing.join(', ')}`;
  return joinPresent([`${address} ${leads ? 'leads' : 'stands by'}`, version, `started ${formatAge(since)}`, what]);
}

function makeLimitRow() {
  const name = element('b', 'mono ellipsis');
  const running = element('span', 'num');
  const bar = element('div', 'bar');
  const pace = element('span', 'num soft');
  const waiting = element('span', 'ellipsis');
  const change = element('button', {}, 'Change');
  const drop = element('button', 'danger', 'Remove');
  const use = element('span', {}, running, bar);
  const row = element('div', 'row limit', name, use, pace, waiting, change, drop);
  return {
    el: element('li', {}, row),
    update(limit) {
      setLine(name, limit.name);
      setText(running, usageText(limit));
      renderUsage(bar, limit);
      setText(pace, limit.perMinute === undefined ? '' : `${formatCount(limit.perMinute)} a minute`);
      renderWaiting(waiting, limit);
      change.onclick = () => fillLimitForm(limit);
      onClick(drop, () => removeLimit(limit));
    },
  };
}

function usageText({running, runningNow}) {
  return running === undefined ? `${formatCount(runningNow)} running` : `${runningNow} of ${running} running`;
}

// How much of the limit is in use, as far as it bounds what runs.
function renderUsage(bar, {running, runningNow}) {
  setVisible(bar, running);
  const parts = running && runningNow ? [Math.min(100, 100 * runningNow / running)] : [];
  renderList(bar, parts, () => 'running', () => ({
    el: element('span', 's-running'),
    update(percent) {
      this.el.style.width = percent + '%';
    },
  }));
}

// "3 wait: a, b": how many executions wait, and some of their tasks as links.
function renderWaiting(box, {name, waiting}) {
  const tasks = overviewView.waiting.filter(task => task.limits?.includes(name));
  const parts = waiting ? [{id: '', text: `${formatCount(waiting)} queued `}] : [];
  for (const task of tasks.slice(0, NAMED_WAITING_TASKS)) parts.push({id: task.id, text: task.name});
  renderList(box, parts, part => part.id + part.text, ({id, text}) => ({
    el: id ? element('a', {href: taskAddress(id)}, safeLine(text)) : element('span', 'soft', text),
    update() {},
  }));
}

const limitForm = byId('limit-form');

function fillLimitForm({name: limit, running, perMinute}) {
  const values = {limit, running, perMinute};
  for (const [name, value] of Object.entries(values)) limitForm.elements[name].value = value ?? '';
  limitForm.elements.running.focus();
}

async function removeLimit({name}) {
  const consequence =
    'Its name is unknown from then on. That is refused while a task that has not ended counts for it.';
  if (!await confirmFirst(`Remove the limit ${safeLine(name)}?`, consequence, 'Remove it')) return;
  await remove('limit/' + encodeURIComponent(name));
  startPolling();
}

limitForm.onsubmit = async event => {
  event.preventDefault();
  const limit = {};
  for (const name of ['running', 'perMinute']) {
    const text = limitForm.elements[name].value.trim();
    if (text) limit[name] = shareOf(text);
  }
  try {
    await put('limit/' + encodeURIComponent(limitForm.elements.limit.value.trim()), limit);
    limitForm.reset();
    startPolling();
  } catch (error) {
    showToast(safeLine(error.message));
  }
};
