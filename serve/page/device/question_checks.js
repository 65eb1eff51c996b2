// The limits of questions about audio; they follow tinymusician/runtime/question_checks.py.

export const MAX_LETTERS = 8;
const MAX_QUESTION = 300, MAX_OPTIONS = 50, MAX_OPTION = 60, MAX_PROMPT_TOKENS = 400, MAX_OPTION_TOKENS = 2000, MAX_SAMPLE = 1000;
const CANNOT_TELL = 'cannot tell';

export function checkQuestion(question, options) {
  const folded = options.map(normalizeText), length = (text) => [...text].length;
  if (!normalizeText(question)) throw new Error('The question is empty.');
  if ([question, ...options].some((text) => /[\p{Cc}\p{Cs}]/u.test(text))) throw new Error('Question and possible answers have control or broken characters; one line of text each is needed.');
  if (length(question) > MAX_QUESTION) throw new Error(`The question has ${length(question)} characters; at most ${MAX_QUESTION} are allowed.`);
  if (options.length === 1 || options.length > MAX_OPTIONS) throw new Error(`${options.length} possible answers; 2 to ${MAX_OPTIONS} are allowed, or none.`);
  if (folded.includes('')) throw new Error('A possible answer is empty.');
  if (options.some((option) => length(option) > MAX_OPTION)) throw new Error(`A possible answer has more than ${MAX_OPTION} characters.`);
  if (folded.includes(CANNOT_TELL)) throw new Error(`“${CANNOT_TELL}” is always a possible answer; leave it out.`);
  if (new Set(folded).size < folded.length) throw new Error('A possible answer is there twice.');
}

// Tokens of a question with its listed options, and of all options: a character may take several.
export function checkTokens([question, ...options]) {
  const sum = (sizes) => sizes.reduce((a, b) => a + b, 0), listed = question + (options.length <= MAX_LETTERS ? sum(options) : 0);
  if (listed > MAX_PROMPT_TOKENS || sum(options) > MAX_OPTION_TOKENS) throw new Error('Question and possible answers take too many tokens: use fewer or plainer words.');
}

export function checkSamples(samples) {
  if (!samples.every((value) => Math.abs(value) <= MAX_SAMPLE)) throw new Error('The audio has samples that are not numbers, or far above full scale.');
}

// A text without what cannot be seen: equal for texts that look alike, whatever their case and spaces. Upper case first, as case folding: ß is ss.
export function normalizeText(text) {
  return text.normalize('NFKC').replace(/\p{Cf}/gu, '').toUpperCase().toLowerCase().trim().replace(/\s+/g, ' ');
}
