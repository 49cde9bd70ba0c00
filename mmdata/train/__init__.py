"""The bundled trainer: one fused model of text, image and audio, trained on shards and measured on them.

It reads shards as any outsider would and knows nothing of pipelines. `mmdata.train.config` imports no torch;
`mmdata.train.run` imports it when a training starts.
"""
