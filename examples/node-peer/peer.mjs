// A peer of a run without a line of Python: a linear softmax classifier in JavaScript, from the .proto file alone.
//
//   node peer.mjs 127.0.0.1:50051 NAME inputs.npy labels.npy      (inputs float32, labels int64, as numpy.save wrote them)
//
// docs/protocol.md says what passes. It does not join again after a break: then it ends, and the run waits for its restart.
import { readFileSync } from 'node:fs'
import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import grpc from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import blake from 'blakejs'

const [address, name, inputsPath, labelsPath] = process.argv.slice(2)
const proto = fileURLToPath(new URL('../../proto/entangled/v1/exchange.proto', import.meta.url))
const options = { keepCase: true, longs: Number, defaults: true, oneofs: true }
const { Coordinator } = grpc.loadPackageDefinition(loadSync(proto, options)).entangled.v1
const PROTOCOL = 3 // with another one, nothing in this file may be right any more
const MiB256 = 256 * 1024 * 1024
const client = new Coordinator(address, grpc.credentials.createInsecure(), {
  'grpc.max_receive_message_length': MiB256, 'grpc.max_send_message_length': MiB256,
})

// ---- data, and what is said of it

function npy(path) { // a version 1 file: 10 bytes, the header's text, the values
  const file = readFileSync(path)
  const start = 10 + file.readUInt16LE(8)
  const header = file.toString('latin1', 10, start)
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(',').filter((n) => n.trim()).map(Number)
  const copy = file.buffer.slice(file.byteOffset + start, file.byteOffset + file.length) // aligned
  return { dtype: header.match(/'descr': '([^']+)'/)[1], shape, bytes: new Uint8Array(copy) }
}
const int64 = (numbers) => new Uint8Array(BigInt64Array.from(numbers, BigInt).buffer) // little-endian, as this machine
const digest = (...parts) => {
  const context = blake.blake2bInit(16)
  for (const part of parts) blake.blake2bUpdate(context, part)
  return Buffer.from(blake.blake2bFinal(context))
}
const inputs = npy(inputsPath), labels = npy(labelsPath)
const samples = inputs.shape[0], features = inputs.bytes.length / 4 / samples
const x = new Float32Array(inputs.bytes.buffer), y = Array.from(new BigInt64Array(labels.bytes.buffer), Number)
const classes = Math.max(...y) + 1
const text = ({ dtype, shape }) => Buffer.from(`${dtype}(${shape.join(', ')}${shape.length === 1 ? ',' : ''})`)
const fingerprint = {
  samples, classes,
  ids_digest: digest(int64(Array.from({ length: samples }, (_, i) => i))),
  contents_digest: digest(text(inputs), inputs.bytes, text(labels), labels.bytes),
}

// ---- the model: p = softmax(x W + b), learned by gradient descent on CE(y, p) + λ · KL(p ‖ others)

const weights = new Float64Array(features * classes), bias = new Float64Array(classes), rate = 0.1
const dot = (id, c) => { let sum = bias[c]; for (let f = 0; f < features; f++) sum += x[id * features + f] * weights[f * classes + c]; return sum }
function predict(ids) {
  return ids.map((id) => {
    const logits = Array.from({ length: classes }, (_, c) => dot(id, c)), top = Math.max(...logits)
    const e = logits.map((v) => Math.exp(v - top)), total = e.reduce((a, b) => a + b)
    return e.map((v) => v / total)
  })
}
function learn(ids, p, others, lambda) {
  let loss = 0
  ids.forEach((id, row) => {
    const ratio = p[row].map((v, c) => Math.log(Math.max(v, 1e-7) / Math.max(others[row * classes + c], 1e-7)))
    const pull = p[row].reduce((sum, v, c) => sum + v * ratio[c], 0)
    loss += -Math.log(Math.max(p[row][y[id]], 1e-7)) + lambda * pull
    for (let c = 0; c < classes; c++) {
      const slope = rate * (p[row][c] - (c === y[id]) + lambda * p[row][c] * (ratio[c] - pull)) / ids.length
      bias[c] -= slope
      for (let f = 0; f < features; f++) weights[f * classes + c] -= slope * x[id * features + f]
    }
  })
  return loss / ids.length
}

// ---- the run

const call = (method, request) => new Promise((resolve, reject) =>
  client[method](request, (error, reply) => (error ? reject(error) : resolve(reply))))
async function order(epoch) {
  const ids = []
  for await (const chunk of client.GetSampleOrder({ epoch })) for (const id of chunk.sample_ids) ids.push(id)
  return ids
}

await new Promise((resolve, reject) => client.waitForReady(Date.now() + 60_000, (e) => (e ? reject(e) : resolve())))
const { experiment_toml: toml, run_id } = await call('GetExperiment', { protocol_version: PROTOCOL })
const [epochs, size] = ['epochs', 'batch_size'].map((key) => Number(toml.match(new RegExp(`^${key} = (\\d+)`, 'm'))[1]))
const steps = Math.ceil(samples / size)
const stream = client.Exchange()
const received = stream[Symbol.asyncIterator]() // ends when the coordinator has heard the goodbye; throws what it refuses
let durable = 0
async function next(kind) {
  for (;;) {
    const { value: message, done } = await received.next()
    if (done) return null
    if (message.durable) durable = message.durable.complete
    if (message[kind]) return message[kind]
  }
}

stream.write({ join: { protocol_version: PROTOCOL, peer: name, instance: randomUUID(), origin: `node ${process.pid}`, fingerprint } })
if ((await next('welcome')).run_id !== run_id) throw new Error('another run has taken this one\'s place')
let loss = 0
for (let epoch = 0; epoch < epochs; epoch++) {
  const ids = await order(epoch)
  for (let step = 0; step < steps; step++) {
    const batch = ids.slice(step * size, (step + 1) * size), p = predict(batch)
    const batch_digest = digest(int64([epoch, step]), int64(batch))
    const probabilities = Buffer.from(Float32Array.from(p.flat()).buffer)
    stream.write({ prediction: { epoch, step, batch_digest, rows: batch.length, classes, probabilities } })
    const target = await next('soft_target')
    if (!target || !digest(target.batch_digest).equals(digest(batch_digest))) throw new Error('an answer about another batch')
    loss = learn(batch, p, new Float32Array(Uint8Array.from(target.probabilities).buffer), target.weight)
  }
}
while (durable < epochs * steps) if (!(await next('durable'))) break
stream.write({ metrics: { epoch: epochs - 1, step: steps - 1, values: { train_loss: loss }, final: true } })
stream.write({ leave: {} })
stream.end()
await next('nothing more')
client.close()
