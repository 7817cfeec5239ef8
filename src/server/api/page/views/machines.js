// All machines, by label, with what they run.

const FIRST_MACHINES = 200;
const MORE_MACHINES = 400;
// A list of more tags cannot be overlooked; the search finds the others.
const MOST_TAGS = 200;

const machinesView = {
  id: 'machines',
  title: 'Machines',
  tab: 'machines',
  search: 'machines-search',
  onlyState: '',
  most: FIRST_MACHINES,
  tasksByInstance: new Map(),

  open() {
    this.most = FIRST_MACHINES;
  },

  async poll(signal) {
    const path = `task?state=running&limit=${TASKS_PER_PAGE}`;
    const [, running] = await Promise.all([fetchMachines(signal), get(path, signal)]);
    this.tasksByInstance = runningByInstance(running.data);
    this.render();
    return 2000;
  },

  render() {
    const states = [...MACHINE_STATES, BEHIND]
      .filter(s => s === this.onlyState || countMachines(s) > 0);
    renderChips(byId('machines-chips'), states, this, countMachines);
    const shown = machines.filter(machine => this.isShown(machine));
    const rows = machineRows(shown, this.tasksByInstance);
    renderMachineRows(byId('machines'), rows.slice(0, this.most));
    setVisible(byId('machines-more'), rows.length > this.most);
    setVisible(byId('machines-empty'), !rows.length);
    const none = 'No machine yet. Start an agent: ' + agentCommand();
    setText(byId('machines-empty'), machines.length ? 'No machine matches.' : none);
    renderTagFilter();
    renderChosen();
  },

  isShown(machine) {
    const {label, host, version, arch = '', instance} = machine;
    const onlyTag = byId('machines-tag').value;
    const tags = tagsOf(machine);
    if (this.onlyState && !isInState(machine, this.onlyState)) return false;
    if (onlyTag && !tags.includes(onlyTag)) return false;
    return matches([label, host, version, arch, instance, ...tags], byId('machines-search').value);
  },
};

// The tags that most machines have, and the one that was picked.
function renderTagFilter() {
  const select = byId('machines-tag');
  const counts = new Map([['', machines]]);
  if (select.value) counts.set(select.value, []);
  const groups = groupBy(machines.flatMap(tagsOf), tag => tag);
  const common = [...groups].sort(([, a], [, b]) => b.length - a.length).slice(0, MOST_TAGS);
  common.sort(([a], [b]) => compareNames(a, b));
  for (const [tag, same] of common) counts.set(tag, same);
  renderList(select, [...counts], ([tag]) => tag, ([tag]) => ({
    el: element('option', {value: tag}),
    update([, same]) {
      setText(this.el, tag ? `${safeLine(tag)} (${same.length})` : 'Any tag');
    },
  }));
  setVisible(select, counts.size > 1);
}

function renderChosen() {
  const present = new Set(machines.map(machine => machine.instance));
  for (const instance of chosenInstances) {
    if (!present.has(instance)) chosenInstances.delete(instance);
  }
  const instances = [...chosenInstances].join(',');
  setVisible(byId('machines-chosen'), instances);
  setText(byId('machines-chosen-count'), plural(chosenInstances.size, 'machine') + ' chosen');
  renderCrewButtons('chosen', chosenMachines());
  byId('machines-run').href = '#/submit?' + new URLSearchParams({instances});
}

function chosenMachines() {
  return machines.filter(machine => chosenInstances.has(machine.instance));
}

makeCrewButtons('chosen', chosenMachines);

function showFromStart() {
  machinesView.most = FIRST_MACHINES;
  machinesView.render();
}

byId('machines-search').oninput = showFromStart;
byId('machines-tag').onchange = showFromStart;
byId('machines-choose-none').onclick = () => {
  chosenInstances.clear();
  machinesView.render();
};
byId('machines-more').onclick = () => {
  machinesView.most += MORE_MACHINES;
  machinesView.render();
};
