// The first view: the fleet at a glance, and the tasks.

// Labels as squares without names when there are more than so many.
const DENSE_LABELS = 40;
// More squares than these are too small to tell apart; the view of machines lists them all.
const MOST_LABELS = 1500;
const MOST_CELLS_PER_LABEL = 60;

const homeView = {
  id: 'home',
  title: 'Tasks',
  tab: 'home',
  search: 'tasks-search',
  polls: 0,

  // #/?clean=0 shows the tasks that are not undone.
  open(_, query) {
    this.polls = 0;
    const select = byId('tasks-state');
    const notUndone = query.get('clean') === '0';
    if (notUndone === (select.value === NOT_UNDONE)) return;
    select.value = notUndone ? NOT_UNDONE : '';
    filterTasks();
  },

  // Machines change less often than tasks: they are fetched every other time.
  async poll(signal) {
    const withMachines = this.polls % 2 === 0;
    this.polls += 1;
    await Promise.all([withMachines && fetchMachines(signal), taskList.poll(signal)]);
    if (withMachines) renderFleet();
    if (!taskList.emptyBox.hidden) renderNoTasks();
    return 2000;
  },
};

const taskList = new TaskList(byId('tasks'), byId('tasks-more'), byId('tasks-empty'));
// For which query `tasks-empty` was rendered.
let emptyQuery = null;

function renderNoTasks() {
  const {emptyBox, query} = taskList;
  if (emptyQuery === query) return;
  emptyQuery = query;
  clear(emptyBox);
  if (query) {
    const hint = element('p', {}, 'The search compares the beginning of names.');
    emptyBox.append(element('h3', {}, 'No task matches'), hint);
    return;
  }
  const header = token ? ' -H "Authorization: Bearer $SIDEBIKE_TOKEN"' : '';
  const body = '{"machinePattern": ".*", "detail": {"command": "uname -a"}}';
  emptyBox.append(
    element('h3', {}, 'No task yet'),
    element('p', {}, 'Run a command on every machine whose label matches, here or with curl:'),
    makeCopyable(`curl -s ${BASE}api/v1/task${header} -d '${body}'`),
    element('a', {class: 'button', href: '#/submit'}, 'New task'),
  );
}

function renderFleet() {
  const box = byId('fleet');
  const labels = groupBy(machines, machine => machine.label);
  setText(byId('fleet-summary'), fleetSummary());
  if (!machines.length) {
    setClass(box, 'card empty');
    if (box.rows || !box.firstChild) renderNoMachines(box);
    return;
  }
  setClass(box, labels.size > DENSE_LABELS ? 'card fleet dense' : 'card fleet');
  if (!box.rows) clear(box);
  renderList(box, [...labels].slice(0, MOST_LABELS), ([label]) => label, makeFleetLabel);
}

function renderNoMachines(box) {
  clear(box);
  box.append(
    element('h3', {}, 'No machine yet'),
    element('p', {}, 'Start an agent on each machine. It must be able to connect to this server:'),
    makeCopyable(agentCommand()),
    element('p', {}, 'The machine appears here by itself.'),
  );
}

// "3 machines · 2 online · 1 offline · 1 running · version 0.1.0"
function fleetSummary() {
  if (!machines.length) return '';
  const states = MACHINE_STATES.map(state => [countMachines(state), state]);
  const running = sum(machines.map(machine => machine.running));
  const queued = sum(machines.map(machine => machine.queued));
  const counts = [...states, [running, 'running'], [queued, 'queued']]
    .map(([count, name]) => count > 0 && `${formatCount(count)} ${name}`);
  const versions = [...new Set(machines.map(machine => machine.version))];
  const version =
    versions.length > 1 ? `${versions.length} versions` : `version ${safeLine(versions[0])}`;
  return joinPresent([plural(machines.length, 'machine'), ...counts, version]);
}

function countMachines(state) {
  return machines.filter(machine => machine.state === state).length;
}

// A label and a square for each of its machines.
function makeFleetLabel() {
  const name = element('span', 'ellipsis');
  const cells = element('span', 'cells');
  const link = element('a', 'label', name, cells);
  return {
    el: link,
    update([label, group]) {
      const states = new Set(group.map(machine => machine.state));
      setLine(name, label);
      link.href = machineAddress(label);
      link.title = `${safeLine(label)}: ${[...states].join(', ')}`;
      const shown = group.slice(0, MOST_CELLS_PER_LABEL);
      renderList(cells, shown, machine => machine.instance, makeFleetCell);
    },
  };
}

function makeFleetCell() {
  return {
    el: element('span'),
    update(machine) {
      setClass(this.el, `cell s-${machine.state}${machine.running ? ' busy' : ''}`);
    },
  };
}

const TASK_STATES =
  ['waiting', 'running', 'succeeded', 'partial', 'failed', 'canceled', 'expired', 'skipped'];
for (const state of TASK_STATES) {
  byId('tasks-state').append(element('option', {value: state}, state));
}

const NOT_UNDONE = 'not undone';
byId('tasks-state').append(element('option', {}, NOT_UNDONE));

// Searches for the beginning of a name, or with "label:NAME" for the tasks of a label.
function filterTasks() {
  const text = byId('tasks-search').value;
  const state = byId('tasks-state').value;
  const label = text.startsWith('label:') ? text.slice('label:'.length) : null;
  let query = state && (state === NOT_UNDONE ? '&clean=0' : '&state=' + state);
  if (label) query += '&label=' + encodeURIComponent(label);
  else if (text && label === null) query += '&taskPrefix=' + encodeURIComponent(text);
  taskList.reset(query);
  startPolling();
}

byId('tasks-search').oninput = afterTyping(filterTasks);
byId('tasks-state').onchange = () => {
  const query = byId('tasks-state').value === NOT_UNDONE ? '?clean=0' : '';
  history.replaceState(null, '', '#/' + query);
  filterTasks();
};
