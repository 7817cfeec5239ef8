// Machines: the list as last fetched, its rows, and how to start an agent.

// Shared by the views, so that a view has something to show before its first answer.
let machines = [];
// The instances that were chosen in the list, for a new task.
const chosenInstances = new Set();

async function fetchMachines(signal) {
  machines = (await get('machine', signal)).data;
}

// Shown like a state: agents that are older than the server.
const BEHIND = 'behind';

function isInState(machine, state) {
  return state === BEHIND ? isBehind(machine) : machine.state === state;
}

// The tags of a machine, each as NAME=VALUE.
function tagsOf({tags}) {
  return Object.entries(tags ?? {}).map(tag => tag.join('='));
}

function machineAddress(labelOrInstance) {
  return '#/machine/' + encodeURIComponent(labelOrInstance);
}

// The names of machines by instance: the label; label@host where several share it; label/8da52e4c
// where they share the host too.
function machineNames(executions) {
  const names = new Map();
  for (const [label, sharing] of groupBy(executions, execution => execution.machineLabel)) {
    const hosts = new Map(sharing.map(({instance, host}) => [instance, host]));
    const sameHost = groupBy([...hosts.values()], host => host);
    for (const [instance, host] of hosts) {
      const isAlone = host && sameHost.get(host).length === 1;
      const name = isAlone ? `${label}@${host}` : `${label}/${instance.slice(0, 8)}`;
      names.set(instance, hosts.size > 1 ? name : label);
    }
  }
  return names;
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
  const tags = element('span', 'tags ellipsis soft');
  const link = element('a', {}, name, state, host, version, work, seen, tags);
  const box = element('input', {type: 'checkbox'});
  return {
    el: element('li', {}, box, link),
    update({machine, isFirst, sameLabel, tasks}) {
      const {instance} = machine;
      box.checked = chosenInstances.has(instance);
      box.onchange = () => {
        if (box.checked) chosenInstances.add(instance);
        else chosenInstances.delete(instance);
        machinesView.render();
      };
      box.setAttribute('aria-label', `Choose ${safeLine(machine.label)}, instance ${instance}`);
      setLine(tags, tagsOf(machine).join('  '));
      setVisible(tags, tags.shownText);
      link.href = machineAddress(machine.instance);
      link.title = 'instance ' + safeLine(machine.instance);
      setClass(link, isFirst ? 'row machine' : 'row machine same-label');
      setLine(name, machine.label + (isFirst && sameLabel > 1 ? ` ×${sameLabel}` : ''));
      setBadge(state, machine.state);
      setLine(host, joinPresent([machine.host, machine.arch]));
      setLine(version, isBehind(machine) ? `${machine.version} behind` : machine.version);
      setClass(version, `version num ellipsis ${isBehind(machine) ? 'behind' : 'soft'}`);
      setLine(work, workOf(machine, tasks));
      setText(seen, formatAge(machine.lastSeen));
      seen.title = formatTime(machine.lastSeen);
    },
  };
}

// What a machine does: the tasks by name as far as they are known, else how many.
function workOf({running, queued, suspended, wanted}, tasks) {
  const count = running > 0 && `${running} running`;
  return joinPresent([
    tasks.length ? joinFirst(tasks, 3) : count,
    queued > 0 && `${queued} queued`,
    suspended !== undefined && suspendedText(suspended),
    wanted && 'told to ' + WANTED[wanted],
  ]);
}

const WANTED = {drain: 'drain', undrain: 'take work again', shutdown: 'end'};

function suspendedText(reason) {
  return reason ? 'suspended: ' + reason : 'suspended';
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
