// The codes that transformers.js plays greedily: node generate.mjs FOLDER PROMPT FRAMES GUIDANCE
// FOLDER is a bundle in Optimum's layout. Prints one JSON object with `dims` [1, K, T] and `codes`.
import { AutoTokenizer, MusicgenForConditionalGeneration, env } from '@huggingface/transformers';

const [folder, prompt, frames, guidance] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = '';
const local = { local_files_only: true };
const tokenizer = await AutoTokenizer.from_pretrained(folder, local);
const model = await MusicgenForConditionalGeneration.from_pretrained(folder, { ...local, dtype: 'fp32', device: 'cpu' });

// MusicGen's own `generate` ends with a wave: the one that it calls gives the codes, still delayed.
const plain = Object.getPrototypeOf(MusicgenForConditionalGeneration.prototype).generate;
const numCodebooks = model.config.decoder.num_codebooks;
const delayed = await plain.call(model, {
  ...tokenizer(prompt),
  max_new_tokens: Number(frames) + numCodebooks - 1,
  do_sample: false,
  guidance_scale: Number(guidance),
});
const codes = model._apply_and_filter_by_delay_pattern_mask(delayed);
console.log(JSON.stringify({ dims: codes.dims, codes: Array.from(codes.data, Number) }));
