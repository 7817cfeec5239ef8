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

  // #/?clean=0 shows the tasks that are not undone, #/?tag=NAME=VALUE and #/?group=NAME those of a tag or group.
  open(_, query) {
    this.polls = 0;
    const select = byId('tasks-state');
    const search = byId('tasks-search');
    const filter = ['tag', 'group'].find(name => query.has(name));
    const text = filter ? `${filter}:${query.get(filter)}` : '';
    const notUndone = query.get('clean') === '0';
    const before = select.value + search.value;
    // What was typed stays; what an address has filled in goes with it.
    if (text || search.value === searchOfAddress) search.value = text;
    searchOfAddress = text;
    if (notUndone || select.value === NOT_UNDONE) select.value = notUndone ? NOT_UNDONE : '';
    if (select.value + search.value !== before) filterTasks();
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
  const states = [...MACHINE_STATES, BEHIND].map(state => [countMachines(state), state]);
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
  return machines.filter(machine => isInState(machine, state)).length;
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

for (const state of TASK_STATES) {
  byId('tasks-state').append(element('option', {value: state}, state));
}

const NOT_UNDONE = 'not undone';
byId('tasks-state').append(element('option', {}, NOT_UNDONE));

// What the address has written into the search.
let searchOfAddress = '';

// Searches for the beginning of a name, or with "label:NAME", "tag:NAME=VALUE", "group:NAME" for the tasks of one.
function filterTasks() {
  const text = byId('tasks-search').value;
  const state = byId('tasks-state').value;
  const [, filter = 'taskPrefix', value] = /^(?:(label|tag|group):)?(.*)$/.exec(text);
  // Half a tag is not one yet.
  const isComplete = value && (filter !== 'tag' || value.includes('='));
  let query = state && (state === NOT_UNDONE ? '&clean=0' : '&state=' + state);
  if (isComplete) query += `&${filter}=${encodeURIComponent(value)}`;
  taskList.reset(query);
  startPolling();
}

// Makes the address say what is shown, as far as it can.
function changeFilters() {
  const query = new URLSearchParams();
  const [, filter, value] = /^(tag|group):(.+)$/.exec(byId('tasks-search').value) ?? [];
  if (byId('tasks-state').value === NOT_UNDONE) query.set('clean', 0);
  if (filter) query.set(filter, value);
  searchOfAddress = filter ? byId('tasks-search').value : '';
  history.replaceState(null, '', '#/' + (query.size ? '?' + query : ''));
  filterTasks();
}

byId('tasks-search').oninput = afterTyping(changeFilters);
byId('tasks-state').onchange = changeFilters;
