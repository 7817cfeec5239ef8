// Machines: the list as last fetched, its rows, and how to start an agent.

// Shared by the views, so that a view has something to show before its first answer.
let machines = [];

async function fetchMachines(signal) {
  machines = (await get('machine', signal)).data;
}

function machineAddress(labelOrInstance) {
  return '#/machine/' + encodeURIComponent(labelOrInstance);
}

// One row per machine, those of one label together: {machine, isFirst, sameLabel, tasks}, where
// `tasks` are the names of what runs there.
function machineRows(list, tasksByInstance) {
  const rows = [];
  for (const group of groupBy(list, machine => machine.label).values()) {
    for (const [index, machine] of group.entries()) {
      const tasks = tasksByInstance.get(machine.instance) ?? [];
      rows.push({machine, isFirst: index === 0, sameLabel: group.length, tasks});
    }
  }
  return rows;
}

function renderMachineRows(box, rows) {
  renderList(box, rows, row => row.machine.instance, makeMachineRow);
}

function makeMachineRow() {
  const name = element('span', 'name ellipsis');
  const state = makeBadge();
  const host = element('span', 'host ellipsis soft');
  const version = element('span', 'version soft num ellipsis');
  const work = element('span', 'runs ellipsis');
  const seen = element('span', 'seen right soft num');
  const link = element('a', {}, name, state, host, version, work, seen);
  return {
    el: element('li', {}, link),
    update({machine, isFirst, sameLabel, tasks}) {
      link.href = machineAddress(machine.instance);
      link.title = 'instance ' + safeLine(machine.instance);
      setClass(link, isFirst ? 'row machine' : 'row machine same-label');
      setLine(name, machine.label + (isFirst && sameLabel > 1 ? ` ×${sameLabel}` : ''));
      setBadge(state, machine.state);
      setLine(host, machine.host);
      setLine(version, machine.version);
      setLine(work, workOf(machine, tasks));
      setText(seen, formatAge(machine.lastSeen));
      seen.title = formatTime(machine.lastSeen);
    },
  };
}

// What a machine does: the tasks by name as far as they are known, else how many.
function workOf({running, queued}, tasks) {
  const count = running > 0 && `${running} running`;
  return joinPresent([
    tasks.length ? joinFirst(tasks, 3) : count,
    queued > 0 && `${queued} queued`,
  ]);
}

function agentCommand() {
  const variable = token ? 'SIDEBIKE_AGENT_TOKEN=… ' : '';
  return `${variable}sidebike agent --registry-address ${registryAddress()}`;
}

// This server as an agent's --registry-address: HOST:PORT, or a URL if it has more than that.
function registryAddress() {
  const {protocol, hostname} = location;
  const port = location.port || (protocol === 'https:' ? 443 : 80);
  const path = BASE.slice(location.origin.length, -1);
  const scheme = protocol === 'http:' && !path ? '' : protocol + '//';
  return `${scheme}${hostname}:${port}${path}`;
}
