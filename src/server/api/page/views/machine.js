// One machine, by its instance, or all machines of a label; and the tasks that were sent there.

const machineTaskList = new TaskList(
  byId('machine-tasks'),
  byId('machine-tasks-more'),
  byId('machine-tasks-empty'),
);

const machineView = {
  id: 'machine',
  title: 'Machine',
  tab: 'machines',
  needsName: true,

  // The machines that are shown, as last fetched.
  own: [],

  open([name]) {
    this.name = name;
    this.own = [];
    machineTaskList.reset('');
    clear(machineTaskList.box, byId('machine-list'), byId('machine-facts'));
    for (const id of ['machine-tasks-empty', 'machine-tasks-more', 'machine-empty']) {
      setVisible(byId(id), false);
    }
    setLine(byId('machine-name'), name);
  },

  async poll(signal) {
    const {name} = this;
    const {data} = await get('machine', signal);
    const own = data.filter(({instance, label}) => instance === name || label === name);
    const label = own[0]?.label ?? name;
    const byInstance = own[0]?.instance === name;
    // The API knows the tasks of a label; those of an instance are picked out here.
    machineTaskList.query = '&label=' + encodeURIComponent(label);
    machineTaskList.isShown = task =>
      !byInstance || task.result.some(execution => execution.instance === name);
    await machineTaskList.poll(signal);
    const shares = data.filter(machine => machine.label === label).length > 1;
    // One among several of its label is meant by its instance.
    this.where = byInstance && shares ? {instances: name} : {pattern: `^${escapePattern(label)}$`};
    this.own = own;
    this.render(own, label);
    return 2000;
  },

  render(own, label) {
    const tasksByInstance = runningByInstance(machineTaskList.all());
    setLine(byId('machine-name'), label);
    renderMachineRows(byId('machine-list'), machineRows(own, tasksByInstance));
    setVisible(byId('machine-empty'), !own.length);
    setVisible(byId('machine-run'), own.length);
    renderCrewButtons('machine', own);
    byId('machine-run').href = '#/submit?' + new URLSearchParams(this.where);
    renderFacts(byId('machine-facts'), own.length === 1 ? machineFacts(own[0]) : []);
  },

  back() {
    return '#/machines';
  },
};

function machineFacts(machine) {
  return [
    ['Instance', machine.instance, 'mono'],
    ['Host', machine.host],
    ['Tags', tagsOf(machine).join('  '), 'mono'],
    ['Version', versionText(machine)],
    ['Architecture', machine.arch],
    ['Commands at once', machine.jobs],
    ['Running', machine.running],
    ['Queued', machine.queued],
    ['Suspended', machine.suspended === undefined ? '' : machine.suspended || 'yes'],
    ['Up', formatDuration(serverNow() - parseTime(machine.since))],
  ];
}

function versionText(machine) {
  const {version} = machine;
  return isBehind(machine) ? `${version}, behind the server's ${SERVER_VERSION}` : version;
}

makeCrewButtons('machine', () => machineView.own);

// A regular expression that matches this text.
function escapePattern(text) {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
}
