// All machines, by label, with what they run.

const FIRST_MACHINES = 200;
const MORE_MACHINES = 400;

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
    const states = MACHINE_STATES.filter(s => s === this.onlyState || countMachines(s) > 0);
    renderChips(byId('machines-chips'), states, this, countMachines);
    const shown = machines.filter(machine => this.isShown(machine));
    const rows = machineRows(shown, this.tasksByInstance);
    renderMachineRows(byId('machines'), rows.slice(0, this.most));
    setVisible(byId('machines-more'), rows.length > this.most);
    setVisible(byId('machines-empty'), !rows.length);
    const none = 'No machine yet. Start an agent: ' + agentCommand();
    setText(byId('machines-empty'), machines.length ? 'No machine matches.' : none);
  },

  isShown({label, host, version, instance, state}) {
    if (this.onlyState && state !== this.onlyState) return false;
    return matches([label, host, version, instance], byId('machines-search').value);
  },
};

byId('machines-search').oninput = () => {
  machinesView.most = FIRST_MACHINES;
  machinesView.render();
};
byId('machines-more').onclick = () => {
  machinesView.most += MORE_MACHINES;
  machinesView.render();
};
