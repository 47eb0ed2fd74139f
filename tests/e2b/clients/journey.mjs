// The JavaScript client through all that Ringfence does for it, as two users at once.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const require = createRequire(path.join(process.env.CLIENTS, 'here.js'))
const found = require.resolve('e2b')
const e2b = await import(pathToFileURL(found).href)
const { Sandbox, CommandExitError, TimeoutError, FileNotFoundError, SandboxNotFoundError, AuthenticationError } =
  e2b.Sandbox ? e2b : e2b.default

const keys = { alice: process.env.E2B_API_KEY, bob: process.env.OTHER_E2B_API_KEY }
const wildcard = Boolean(process.env.E2B_DOMAIN)
const sleep = (ms) => new Promise((done) => setTimeout(done, ms))

async function eventually(what, done, withinMs = 30_000) {
  const end = Date.now() + withinMs
  while (!(await done())) {
    assert(Date.now() < end, `not within ${withinMs} ms: ${what}`)
    await sleep(50)
  }
}

async function port(sbx, number, url = '/', headers = {}) {
  const address = wildcard ? `https://${sbx.getHost(number)}` : process.env.E2B_SANDBOX_URL
  const routed = wildcard ? {} : { 'E2b-Sandbox-Id': sbx.sandboxId, 'E2b-Sandbox-Port': String(number) }
  const answer = await fetch(address + url, { headers: { ...routed, ...headers } })
  return [answer.status, await answer.text()]
}

const steps = {
  async commands(sbx, me) {
    const done = await sbx.commands.run('echo $OWNER; pwd; whoami; echo err >&2')
    assert.deepEqual([done.stdout, done.stderr, done.exitCode], [`${me}\n/home/user\nuser\n`, 'err\n', 0])
    await assert.rejects(sbx.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
    await assert.rejects(sbx.commands.run('sleep 30', { timeoutMs: 1000 }), TimeoutError)
    const asked = await sbx.commands.run('pwd; id -u; echo $X', { cwd: '/tmp', user: 'root', envs: { X: 'mine' } })
    assert.equal(asked.stdout, '/tmp\n0\nmine\n')
    let said = ''
    const slow = await sbx.commands.run('for i in 1 2 3; do echo $i; sleep 0.1; done', {
      background: true,
      onStdout: (text) => { said += text },
    })
    assert((await sbx.commands.list()).some((one) => one.pid === slow.pid))
    await slow.wait()
    assert.equal(said, '1\n2\n3\n')
    const reader = await sbx.commands.run('cat', { background: true, stdin: true })
    await sbx.commands.sendStdin(reader.pid, me)
    await sbx.commands.closeStdin(reader.pid)
    assert.equal((await reader.wait()).stdout, me)
    const long = await sbx.commands.run('sleep 300', { background: true })
    await long.disconnect()
    const again = await sbx.commands.connect(long.pid)
    assert(await sbx.commands.kill(long.pid))
    await assert.rejects(again.wait())
  },

  async terminals(sbx, me) {
    let seen = ''
    const terminal = await sbx.pty.create({
      cols: 80,
      rows: 24,
      envs: { WHO: me },
      onData: (data) => { seen += Buffer.from(data).toString() },
    })
    await sbx.pty.resize(terminal.pid, { cols: 132, rows: 40 })
    await sbx.pty.sendInput(terminal.pid, new TextEncoder().encode('echo $WHO-$TERM; stty size\n'))
    await eventually('the terminal answers', () => seen.includes(`${me}-xterm-256color`) && seen.includes('40 132'))
    assert(await sbx.pty.kill(terminal.pid))
    await terminal.wait().catch(() => {})
  },

  async files(sbx, me) {
    const made = await sbx.files.write('notes/a.txt', `of ${me}`)
    assert.equal(made.path, '/home/user/notes/a.txt')
    assert.equal(await sbx.files.read('notes/a.txt'), `of ${me}`)
    const info = await sbx.files.getInfo('notes/a.txt')
    assert.deepEqual([info.owner, info.group, info.mode, info.type], ['user', 'user', 0o644, 'file'])
    const data = new Uint8Array(300_000).map((_, i) => i % 251)
    await sbx.files.write('data', data.buffer)
    assert.deepEqual(await sbx.files.read('data', { format: 'bytes' }), data)
    await sbx.files.write([{ path: 'many/a', data: '1' }, { path: 'many/b', data: '2' }])
    assert.deepEqual((await sbx.files.list('many')).map((one) => one.name).sort(), ['a', 'b'])
    assert(await sbx.files.makeDir('many/deep'))
    assert(!(await sbx.files.makeDir('many/deep')))
    await sbx.files.rename('many/a', 'many/z')
    assert((await sbx.files.exists('many/z')) && !(await sbx.files.exists('many/a')))
    await sbx.files.remove('many')
    await assert.rejects(sbx.files.read('many/z'), FileNotFoundError)
    const marked = await sbx.files.write('marked', 'x', { metadata: { purpose: 'a test' } })
    assert.deepEqual(marked.metadata, { purpose: 'a test' })
  },

  async watching(sbx, me) {
    await sbx.files.makeDir('seen')
    const events = []
    const watcher = await sbx.files.watchDir('seen', (event) => { events.push(event) }, { recursive: true })
    await sbx.files.write('seen/new', me)
    await eventually('three events of a new file', () => events.length >= 3)
    assert.deepEqual(events.map((event) => event.type).sort(), ['chmod', 'create', 'write'])
    await watcher.stop()
  },

  async life(sbx, me) {
    const apiKey = keys[me]
    const info = await sbx.getInfo()
    assert.deepEqual([info.state, info.metadata.owner], ['running', me])
    const own = await Promise.all(
      [0, 1, 2].map((n) => Sandbox.create({ timeoutMs: 60_000, metadata: { n: `${n}`, set: `${me}&=%` }, apiKey }))
    )
    const pages = Sandbox.list({ query: { metadata: { set: `${me}&=%` } }, limit: 2, apiKey })
    const listed = []
    while (pages.hasNext) listed.push((await pages.nextItems()).map((one) => one.sandboxId))
    assert.deepEqual(listed.map((page) => page.length), [2, 1])
    assert.deepEqual(listed.flat().sort(), own.map((one) => one.sandboxId).sort())
    const [beside, ...rest] = own
    await beside.files.write('kept', me)
    assert(await beside.pause())
    assert.equal((await beside.getInfo()).state, 'paused')
    assert(!(await beside.isRunning()))
    const back = await beside.connect({ timeoutMs: 60_000 })
    assert.equal(await back.files.read('kept'), me)
    const taken = await back.createSnapshot()
    const copy = await Sandbox.create(taken.snapshotId, { timeoutMs: 60_000, apiKey })
    assert.equal(await copy.files.read('kept'), me)
    assert(await copy.kill())
    assert(await Sandbox.deleteSnapshot(taken.snapshotId, { apiKey }))
    const forks = await back.fork({ count: 2, timeoutMs: 60_000 })
    for (const fork of forks) {
      assert.equal(await fork.files.read('kept'), me)
      assert(await fork.kill())
    }
    for (const one of [back, ...rest]) assert(await one.kill())
  },

  async ports(sbx, me) {
    await sbx.files.write('/tmp/www/index.html', `page of ${me}`)
    await sbx.commands.run('python -m http.server 8000 --bind 127.0.0.1 -d /tmp/www', { background: true, timeoutMs: 0 })
    await eventually('a port is served', async () => (await port(sbx, 8000))[0] === 200)
    assert.deepEqual(await port(sbx, 8000), [200, `page of ${me}`])
    const [status, body] = await port(sbx, 8001)
    assert(status === 502 && body.includes('port is not open'), body)
    const url = await sbx.downloadUrl('notes/a.txt')
    const signed = await fetch(url)
    assert.deepEqual([signed.status, await signed.text()], [200, `of ${me}`])
  },

  async strangers(sbx, me) {
    const other = me === 'alice' ? 'bob' : 'alice'
    met[me].resolve(sbx)
    const theirs = await met[other].promise
    const apiKey = keys[me]
    const listed = await Sandbox.list({ apiKey }).nextItems()
    assert(!listed.some((one) => one.sandboxId === theirs.sandboxId))
    const said = async (call, id) => {
      try {
        return `answers ${JSON.stringify(await call(id))}`
      } catch (error) {
        return `${error.constructor.name}: ${error.message}`.replaceAll(id, 'ID')
      }
    }
    for (const call of [
      (id) => Sandbox.getInfo(id, { apiKey }),
      (id) => Sandbox.kill(id, { apiKey }),
      (id) => Sandbox.setTimeout(id, 1000, { apiKey }),
      (id) => Sandbox.pause(id, { apiKey }),
      (id) => Sandbox.connect(id, { apiKey }),
      (id) => Sandbox.fork(id, { apiKey }),
      (id) => Sandbox.createSnapshot(id, { apiKey }),
    ]) {
      assert.equal(await said(call, theirs.sandboxId), await said(call, 'sbx' + '0'.repeat(32)))
    }
    done[me].resolve()
    await done[other].promise
    assert(await sbx.isRunning())
  },

  async killing(sbx, me) {
    await assert.rejects(Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
    const running = await sbx.commands.run('sleep 300', { background: true, timeoutMs: 0 })
    assert(await sbx.kill())
    await assert.rejects(running.wait(), /killed or reached its end of life/)
    assert(!(await sbx.isRunning()))
    await assert.rejects(sbx.setTimeout(1000), SandboxNotFoundError)
    assert(!(await Sandbox.kill(sbx.sandboxId, { apiKey: keys[me] })))
  },
}

const pending = () => {
  let resolve, reject
  const promise = new Promise((yes, no) => { resolve = yes; reject = no })
  promise.catch(() => {})
  return { promise, resolve, reject }
}
const met = { alice: pending(), bob: pending() }
const done = { alice: pending(), bob: pending() }
const only = (process.env.ONLY ?? '').split(' ').filter(Boolean)

async function journey([me, apiKey]) {
  let begun = Date.now()
  const sbx = await Sandbox.create({ timeoutMs: 600_000, metadata: { owner: me }, envs: { OWNER: me }, apiKey })
  console.log(`${me}: create (${Date.now() - begun} ms)`)
  try {
    for (const [name, step] of Object.entries(steps)) {
      if (only.length && !only.includes(name)) continue
      begun = Date.now()
      await step(sbx, me)
      console.log(`${me}: ${name} (${Date.now() - begun} ms)`)
    }
  } catch (error) {
    met[me].reject(error)
    done[me].reject(error)
    console.error(`${me}:`, error)
    throw error
  } finally {
    await Sandbox.kill(sbx.sandboxId, { apiKey })
  }
  assert.deepEqual(await Sandbox.list({ apiKey }).nextItems(), [])
}

const ended = await Promise.allSettled(Object.entries(keys).map(journey))
for (const one of ended) if (one.status === 'rejected') console.error(one.reason)
process.exit(ended.every((one) => one.status === 'fulfilled') ? 0 : 1)
